curl -X POST http://localhost:8080/execute \
  -H "Authorization: Bearer your-api-key" \
  -H "Content-Type: application/json" \
  -d '{
    "tasks": [
      {
        "command": "echo",
        "args": ["Hello, Faber!"]
      }
    ]
  }'
