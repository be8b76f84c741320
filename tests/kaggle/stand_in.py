"""A stand-in for the parts of Kaggle's API that the kit uses, as the client 2.2.4 calls them.

The client runs unchanged: KAGGLE_API_ENVIRONMENT=LOCALHOST makes it call http://localhost, and the variable http_proxy brings
each request, those to the storage too, to this server's port. Nothing can go further: https_proxy points to a closed port.
"""

import base64
import contextlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

USERNAME, KEY, TOKEN = "stranger", "0123456789abcdef0123456789abcdef", "KGAT_fedcba9876543210fedcba9876543210"
STORAGE = "http://storage.localhost"
CLOSED = "http://127.0.0.1:9"


class StandIn(ThreadingHTTPServer):
    """What Kaggle knows, what it was asked (``calls``), and what it shall refuse (``refusals``: a status by call)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = {TOKEN}
        self.calls, self.refusals = [], {}
        self.datasets, self.blobs, self.kernels, self.submissions = {}, {}, {}, []
        self.dataset_states, self.kernel_states = ["READY"], ["COMPLETE"]
        self.outputs, self.log, self.invalid_sources, self.scores = {}, "[]", {}, ("0.61", "0.55")

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that bring a client with this home folder here."""
        proxy = f"http://127.0.0.1:{self.server_port}"
        names = {"http_proxy": proxy, "https_proxy": CLOSED, "no_proxy": ""}
        both_cases = names | {name.upper(): value for name, value in names.items()}
        return both_cases | {"HOME": str(home), "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}

    def names(self) -> list[str]:
        """What was called, in order."""
        return [name for name, _ in self.calls]

    def bodies(self, name: str) -> list[dict]:
        """What one call was sent, each time."""
        return [body for called, body in self.calls if called == name]

    # The calls, each from its body to its answer.
    def IntrospectToken(self, body):  # noqa: N802
        return {"active": True, "username": USERNAME} if body["token"] in self.tokens else {"active": False}

    def GetDatasetStatus(self, body):  # noqa: N802
        if body["datasetSlug"] not in self.datasets:
            return 404
        return {"status": next_of(self.dataset_states)}

    def GetDataset(self, body):  # noqa: N802
        return {"currentVersionNumber": len(self.datasets[body["datasetSlug"]])}

    def StartBlobUpload(self, body):  # noqa: N802
        token = f"blob-{len(self.blobs)}"
        self.blobs[token] = None
        return {"token": token, "createUrl": f"{STORAGE}/upload/{token}"}

    def CreateDataset(self, body):  # noqa: N802
        return self._add_version(body["slug"], body["files"])

    def CreateDatasetVersion(self, body):  # noqa: N802
        return self._add_version(body["datasetSlug"], body["body"]["files"])

    def _add_version(self, slug, files):
        self.datasets.setdefault(slug, []).append([self.blobs[file["token"]] for file in files])
        return {"status": "ok", "url": f"https://www.kaggle.com/datasets/{slug}", "ref": slug}

    def SaveKernel(self, body):  # noqa: N802
        versions = self.kernels.setdefault(body["slug"], [])
        versions.append(body)
        return {"versionNumber": len(versions), "url": f"https://www.kaggle.com/code/{body['slug']}"} | self.invalid_sources

    def GetKernel(self, body):  # noqa: N802
        versions = self.kernels.get(f"{body['userName']}/{body['kernelSlug']}", [])
        return {"metadata": {"currentVersionNumber": len(versions)}}

    def GetKernelSessionStatus(self, body):  # noqa: N802
        state = next_of(self.kernel_states)
        return {"status": state} | ({"failureMessage": "It ran out of memory."} if state == "ERROR" else {})

    def ListKernelSessionOutput(self, body):  # noqa: N802
        files = [{"fileName": name, "url": f"{STORAGE}/output/{name}"} for name in self.outputs]
        return {"files": files, "log": self.log}

    def CreateCodeSubmission(self, body):  # noqa: N802
        ref = 1000 + len(self.submissions)
        self.submissions.append({"ref": ref, "status": "PENDING", "description": body["submissionDescription"]})
        return {"message": "Successfully submitted", "ref": ref}

    def ListSubmissions(self, body):  # noqa: N802
        answer = {"submissions": [dict(one) for one in self.submissions]}
        for one in self.submissions:  # scored when asked the second time
            one |= {"status": "COMPLETE", "publicScore": self.scores[0], "privateScore": self.scores[1]}
        return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):  # noqa: N802
        name, body = urlsplit(self.path).path.rsplit("/", 1)[1], json.loads(self._body() or b"{}")
        self.server.calls.append((name, body))
        if name in self.server.refusals:
            return self._answer(self.server.refusals[name], b"", "text/html")
        if name != "IntrospectToken" and not self._is_known():
            return self._answer(401, b"", "text/html")
        answer = getattr(self.server, name)(body)
        if isinstance(answer, int):
            return self._answer(answer, json.dumps({"code": answer, "message": "Not found"}).encode())
        return self._answer(200, json.dumps(answer).encode())

    def do_PUT(self):  # noqa: N802
        self.server.blobs[urlsplit(self.path).path.rsplit("/", 1)[1]] = self._body()
        self._answer(self.server.refusals.get("PUT", 200), b"")

    def do_GET(self):  # noqa: N802
        self._answer(200, self.server.outputs[urlsplit(self.path).path.removeprefix("/output/")], "text/csv")

    def log_message(self, *_):
        pass

    def _is_known(self):
        basic = base64.b64encode(f"{USERNAME}:{KEY}".encode()).decode()
        return self.headers.get("Authorization") in {f"Basic {basic}", *(f"Bearer {token}" for token in self.server.tokens)}

    def _body(self):
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status, content, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def next_of(states: list[str]) -> str:
    """The next state; the last one stays."""
    return states.pop(0) if len(states) > 1 else states[0]


@contextlib.contextmanager
def serving():
    """A stand-in that answers in a thread."""
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def fresh_client():
    """Let the client be imported anew: it reads most variables on import. What was imported before comes back."""
    before = take_client()
    try:
        yield
    finally:
        take_client()
        sys.modules.update(before)


def take_client() -> dict:
    """Take the client's modules out of those that are imported."""
    names = [name for name in sys.modules if name.split(".")[0] == "kaggle"]
    return {name: sys.modules.pop(name) for name in names}
