curl -X POST http://localhost:8080/execute \
  -H "Authorization: Bearer your-api-key" \
  -H "Content-Type: application/json" \
  -d '{
    "tasks": [
      {
        "command": "python",
        "args": ["-c", "import time; time.sleep(10)"],
        "resource_limits": {
          "memory_limit": 268435456,
          "cpu_time_limit": 5000000000,
          "wall_time_limit": 10000000000,
          "max_processes": 5
        }
      }
    ]
  }'
