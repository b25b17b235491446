import requests

def execute_task(command, args=None, env=None):
    url = "http://localhost:8080/execute"
    headers = {
        "Authorization": "Bearer your-api-key",
        "Content-Type": "application/json"
    }

    data = {
        "tasks": [{
            "command": command,
            "args": args or [],
            "env": env or {}
        }]
    }

    response = requests.post(url, json=data, headers=headers)
    return response.json()
