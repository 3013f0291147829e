"""A mutating webhook as a mesh's: puts a container of its own in front.   webhook.py CERTIFICATE KEY"""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import sys

CONTAINER = {
    "name": "mesh-init",
    "image": "docker.io/library/busybox:1.37.0",
    "command": ["true"],
    "resources": {},
    "securityContext": {"capabilities": {"drop": ["ALL"]}},
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        there = request["object"]["spec"].get("initContainers")
        answer = {"uid": request["uid"], "allowed": True}
        if not any(each["name"] == CONTAINER["name"] for each in there or []):
            path = "/spec/initContainers" + ("/0" if there else "")
            patch = [{"op": "add", "path": path, "value": CONTAINER if there else [CONTAINER]}]
            answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}
        body = json.dumps(review).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 9443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
