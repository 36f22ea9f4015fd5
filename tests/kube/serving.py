"""The tests' API server as a program: one JSON line on standard input is one command, and is answered with a line.

``{"put": "pods", "item": {…}}``, ``{"delete": ["pods", "shop", "cart"]}``, ``"stop"``, ``"start"``, ``"end"``. It
listens on loopback of the network namespace in which it is started; the first line says where.
"""

from __future__ import annotations

import json
import sys

from tests.kube.api_server import ApiServer


def main() -> None:
    """Serve until standard input ends."""
    with ApiServer() as server:
        print(json.dumps(server.url), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            answer: object = None
            if command == "stop":
                server.stop()
            elif command == "start":
                server.start()
            elif "put" in command:
                answer = server.put(command["put"], command["item"])["metadata"]["uid"]
            elif "delete" in command:
                server.delete(*command["delete"])
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
