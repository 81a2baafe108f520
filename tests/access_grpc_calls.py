"""Calls of gRPC over TLS by the unmodified tritonclient[grpc]; prints the code of each as a line of JSON.

    access_grpc_calls.py HOST:PORT MODEL --ca FILE [--certificate FILE --key FILE] [--token TOKEN]
"""

import argparse
import json

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException


def code(call):
    try:
        call()
        return "OK"
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("model")
    for name in ("ca", "certificate", "key", "token"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    client = grpc.InferenceServerClient(
        args.target,
        ssl=True,
        root_certificates=args.ca,
        private_key=args.key,
        certificate_chain=args.certificate,
    )
    headers = {"authorization": f"Bearer {args.token}"} if args.token else None
    told = {
        "live": code(lambda: client.is_server_live(headers=headers)),
        "metadata": code(lambda: client.get_model_metadata(args.model, headers=headers)),
        "index": code(lambda: client.get_model_repository_index(headers=headers)),
        "load": code(lambda: client.load_model(args.model, headers=headers)),
    }
    client.close()
    print(json.dumps(told))


main()
