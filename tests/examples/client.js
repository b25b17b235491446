async function executeTask(command, args = [], env = {}) {
  const url = 'http://localhost:8080/execute';
  const headers = {
    Authorization: 'Bearer your-api-key',
    'Content-Type': 'application/json',
  };

  const data = {
    tasks: [
      {
        command,
        args,
        env,
      },
    ],
  };

  const response = await fetch(url, {
    method: 'POST',
    headers,
    body: JSON.stringify(data),
  });

  return response.json();
}
