// A Stover receiver that Express hands the parsed body only: it signs what JSON.stringify makes of that.
const { createHmac, timingSafeEqual } = require('crypto');

app.post('/stover', (request, response) => {
  const hmac = createHmac('sha256', process.env.WEBHOOK_SECRET);
  const own = Buffer.from('sha256=' + hmac.update(JSON.stringify(request.body)).digest('hex'));
  const theirs = Buffer.from(request.get('X-Stover-Signature') ?? '');
  const genuine = own.length === theirs.length && timingSafeEqual(own, theirs);
  response.sendStatus(genuine ? 200 : 401);
});
