// One request a line on stdin: {library, secret, headers, body (base64)}; one verdict a line on stdout.
const readline = require('readline');

const libraries = {
  standardwebhooks: () => require('standardwebhooks').Webhook,
  svix: () => require('svix').Webhook,
};

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const { library, secret, headers, body } = JSON.parse(line);
  let verdict;
  try {
    new (libraries[library]())(secret).verify(Buffer.from(body, 'base64').toString(), headers);
    verdict = { ok: true };
  } catch (error) {
    verdict = { ok: false, error: String(error) };
  }
  console.log(JSON.stringify(verdict));
});
