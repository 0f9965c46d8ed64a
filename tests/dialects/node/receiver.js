// An Express app around a handler that a document shows; argv: a file with the handler's code.
const fs = require('fs');
const express = require('express');

const app = express();
app.use(express.json({ limit: '2mb' }));
const handled = [];
const handleNewContact = (data) => handled.push(['contact.created', data]);
const handleWonDeal = (data) => handled.push(['deal.won', data]);
app.get('/handled', (req, res) => res.json(handled));
eval(fs.readFileSync(process.argv[2], 'utf8'));
const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
