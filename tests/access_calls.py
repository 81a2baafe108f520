"""One request of REST by Python's own HTTP and TLS; prints what came of it as a line of JSON.

    access_calls.py URL [--method M] [--ca FILE] [--certificate FILE --key FILE] [--token TOKEN]
                        [--unix PATH] [--user ID]

status, headers and body of the answer, and the common name in the server's certificate; or the error. --unix asks at
a Unix socket, --user as another user of this machine.
"""

import argparse
import http.client
import json
import os
import socket
import ssl
import urllib.parse


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def connection(args, url):
    if args.unix:
        return Unix(args.unix)
    if url.scheme == "http":
        return http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    context = ssl.create_default_context(cafile=args.ca)
    if args.certificate:
        context.load_cert_chain(args.certificate, args.key)
    return http.client.HTTPSConnection(url.hostname, url.port, timeout=60, context=context)


def ask(args):
    url = urllib.parse.urlsplit(args.url)
    client = connection(args, url)
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    client.connect()
    peer = None
    if isinstance(client.sock, ssl.SSLSocket):
        names = [pair for group in client.sock.getpeercert()["subject"] for pair in group]
        peer = dict(names)["commonName"]
    client.request(args.method, url.path, headers=headers)
    answer = client.getresponse()
    lower = {name.lower(): value for name, value in answer.getheaders()}
    return {"status": answer.status, "headers": lower, "body": answer.read().decode(), "peer": peer}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--method", default="GET")
    for name in ("ca", "certificate", "key", "token", "unix", "user"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    if args.user:
        os.setgroups([])
        os.setgid(int(args.user))
        os.setuid(int(args.user))
    try:
        print(json.dumps(ask(args)))
    except (OSError, http.client.HTTPException) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))


main()
