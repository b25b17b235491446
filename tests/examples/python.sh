curl -X POST http://localhost:8080/execute \
  -H "Authorization: Bearer your-api-key" \
  -H "Content-Type: application/json" \
  -d '{
    "tasks": [
      {
        "command": "python",
        "args": ["script.py"],
        "files": {
          "script.py": "import sys\nprint(f\"Python {sys.version}\")\nprint(\"Hello from sandbox!\")"
        },
        "env": {
          "PYTHONPATH": "/tmp"
        }
      }
    ]
  }'
