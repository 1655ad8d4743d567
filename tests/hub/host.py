"""A hub of one process for tests: the part of its HTTP interface that huggingface_hub uses to fetch and to upload.

Repositories are dictionaries of files; a commit's name is a hash of them. It counts requests, to show which are made.
"""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import unquote

TOKEN = "hf_test"


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository a name, one branch (main), all commits kept."""

    protocol_version = "HTTP/1.1"
    commits: ClassVar[dict[str, dict[str, dict[str, bytes]]]] = {}
    """Files by repository and commit, the newest last."""
    large: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = unquote(self.path.split("?")[0]).strip("/")
        if path.startswith("api/models/"):
            repo, _, revision = path.removeprefix("api/models/").partition("/revision/")
            commit = self._commit(repo, revision or "main")
            if commit is None:
                return self._missing("RepoNotFound" if repo not in self.commits else "RevisionNotFound")
            files = self.commits[repo][commit]
            siblings = [{"rfilename": name, "size": len(files[name])} for name in files]
            return self._answer(
                200, {"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings}
            )
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = self._commit(repo, revision)
        if commit is None or name not in self.commits[repo][commit]:
            return self._missing("EntryNotFound" if commit else "RepoNotFound")
        content = self.commits[repo][commit][name]
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def do_POST(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(self.path.split("?")[0]).strip("/")
        if path == "api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.commits.setdefault(repo, {})
            return self._answer(200, {"url": self._url(repo), "name": repo, "id": repo})
        if path.endswith("/info/lfs/objects/batch"):
            found = [self._upload(one) for one in json.loads(body)["objects"]]
            return self._answer(200, {"transfer": "basic", "objects": found})
        repo, kind = path.removeprefix("api/models/").rsplit("/", 2)[:2]
        if kind == "preupload":
            kinds = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": kinds})
        assert kind == "commit", path
        commit = self._take(repo, [json.loads(line) for line in body.decode().splitlines()])
        answer = {
            "success": True,
            "commitOid": commit,
            "commitUrl": f"{self._url(repo)}/commit/{commit}",
            "hookOutput": "",
        }
        return self._answer(200, answer)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.large[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {})

    def _take(self, repo: str, lines: list[dict[str, Any]]) -> str:
        before = self.commits[repo]
        files = dict(before[list(before)[-1]]) if before else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        return self.publish(repo, files)

    @classmethod
    def publish(cls, repo: str, files: dict[str, bytes]) -> str:
        """A new commit of these files; its name."""
        names = "".join(f"{name}{hashlib.sha1(content).hexdigest()}" for name, content in sorted(files.items()))
        commit = hashlib.sha1(names.encode()).hexdigest()
        cls.commits.setdefault(repo, {})[commit] = files
        return commit

    def _commit(self, repo: str, revision: str) -> str | None:
        known = self.commits.get(repo, {})
        if revision == "main":
            return list(known)[-1] if known else None
        return revision if revision in known else None

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": self._url(f"put/{one['oid']}")}}}

    def _url(self, path: str) -> str:
        return f"http://{self.headers['Host']}/{path}"

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hub() -> Iterator[str]:
    """The address of an empty hub."""
    for kept in (Hub.commits, Hub.large, Hub.requests):
        kept.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
