// An Express app around a handler; argv: a file with the handler's code, which finds `app` and `handled`.
const fs = require('fs');
const express = require('express');

const app = express();
app.use(express.json({ limit: '2mb' }));
const handled = [];
app.get('/handled', (req, res) => res.json(handled));
eval(fs.readFileSync(process.argv[2], 'utf8'));
const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
