curl -X POST http://localhost:8080/execute \
  -H "Authorization: Bearer your-api-key" \
  -H "Content-Type: application/json" \
  -d '{
    "tasks": [
      {
        "command": "echo",
        "args": ["Task 1"]
      },
      {
        "command": "python",
        "args": ["-c", "print(\"Task 2\")"]
      },
      {
        "command": "bash",
        "args": ["-c", "echo \"Task 3\""]
      }
    ]
  }'
