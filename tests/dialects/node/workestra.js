// A Workestra receiver that answers at once and looks at the event afterwards.
app.post('/workestra', (request, response) => {
  response.sendStatus(200);
  const { type, data } = request.body;
  handled.push([type, data]);
});
