// One JSON text a line on stdin, in base64; what JSON.stringify makes of it, in base64, a line on stdout.
const readline = require('readline');

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const text = Buffer.from(line, 'base64').toString('utf8');
  console.log(Buffer.from(JSON.stringify(JSON.parse(text)), 'utf8').toString('base64'));
});
