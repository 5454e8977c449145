"""An unmodified pre-forking server: binds, forks workers, each answers questions with a model's words until SIGTERM."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai

WORKERS = 3
# Made before the fork, as module-level clients of such servers are.
client = openai.OpenAI()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        question = self.rfile.read(int(self.headers["content-length"])).decode()
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": question}])
        body = f"{os.getpid()} {answer.choices[0].message.content}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def stop(*_):
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    for worker in workers:
        os.waitpid(worker, 0)
    sys.exit(0)


server = HTTPServer(("127.0.0.1", 0), Handler)
workers = []
for _ in range(WORKERS):
    worker = os.fork()
    if worker == 0:
        server.serve_forever()
    workers.append(worker)
signal.signal(signal.SIGTERM, stop)
print(server.server_address[1], flush=True)
while True:
    signal.pause()
