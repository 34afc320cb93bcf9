"""Servers with an OpenAI-compatible endpoint: `mlx_vlm.server` and `vllm-mlx`, asked by several clients at once."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmark.contender import ContenderError, Process, Run
from vlmd_bridge import record

# Enough for the longest record of the demo model (about 50 tokens), as vlmd's own budget is.
_MAX_TOKENS = 128

_START_S = 120
_ANSWER_S = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """How a server is started; ``{model}`` and ``{port}`` in its command are replaced."""

    name: str
    command: tuple[str, ...]


class ServerProcess:
    """A started server. Several contenders may ask it: one for each number of clients."""

    def __init__(self, server: Server, model: str, *, blas: str | None, threads: int, log: Path) -> None:
        self.name = server.name
        self._model = model
        self._port = _free_port()
        words = {"{model}": model, "{port}": str(self._port)}
        environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if blas is not None:
            # Ahead of the reference BLAS that MLX's own library links.
            environment |= {"LD_PRELOAD": blas, "OPENBLAS_NUM_THREADS": str(threads)}
        self.process = Process([words.get(word, word) for word in server.command], log=log, environment=environment)

    def ready(self) -> None:
        """Return when it answers for its model."""
        self.process.wake()
        end_s = time.monotonic() + _START_S
        while not self._answers():
            if self.process.popen.poll() is not None or time.monotonic() > end_s:
                raise ContenderError(f"{self.name} did not start: {self.process.last_words()}")
            time.sleep(0.3)  # nothing tells when a server of others is up

    def describe(self, paths: Sequence[str], clients: int) -> Run:
        """Describe the pictures by `clients` clients at once, each waiting for its answer."""
        self.process.wake()
        cpu_s, start_s = self.process.cpu_s(), time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            texts = list(pool.map(self._ask, paths, range(len(paths))))
        seconds = time.perf_counter() - start_s
        return Run(seconds=seconds, cpu_seconds=self.process.cpu_s() - cpu_s, texts=texts)

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/v1/models")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False

    def _ask(self, path: str, index: int) -> str:
        """Ask for one frame, in vlmd's order: instructions, label, image.

        Raises:
            ContenderError: there is no good answer.
        """
        picture = base64.b64encode(Path(path).read_bytes()).decode()
        content = [
            {"type": "text", "text": record.SINGLE_INSTRUCTIONS + record.single_label(float(index))},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        ]
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": _MAX_TOKENS,
            "temperature": 0,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ContenderError(f"{self.name} does not answer: {error!r}; {self.process.last_words()}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ContenderError(f"{self.name} answered {response.status}: {data[:300].decode(errors='replace')}")
        return str(json.loads(data)["choices"][0]["message"]["content"])


class ServerClients:
    """A server asked by a number of clients: a `Contender`. Those of one server differ in `variant`, from 0."""

    def __init__(self, name: str, server: ServerProcess, clients: int, variant: int) -> None:
        self.name = name
        self.variant = variant
        self._server = server
        self._clients = clients

    def ready(self) -> None:
        """Wait for the server."""
        self._server.ready()

    def describe(self, paths: Sequence[str]) -> Run:
        """Describe the pictures."""
        return self._server.describe(paths, self._clients)

    def rest(self) -> None:
        """Stop the server."""
        self._server.process.rest()

    def close(self) -> None:
        """End the server, which other contenders may have done."""
        self._server.process.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def mlx_vlm_server(python: str) -> Server:
    """Return mlx-vlm's own server."""
    words = ("-m", "mlx_vlm.server", "--model", "{model}", "--host", "127.0.0.1", "--port", "{port}")
    return Server(name="mlx_vlm.server", command=(python, *words, "--log-level", "ERROR"))


def vllm_mlx_server(venv: Path) -> Server:
    """Return vllm-mlx, with the continuous batching that it has for several clients."""
    words = ("serve", "{model}", "--mllm", "--continuous-batching", "--offline", "--host", "127.0.0.1")
    command = (os.fspath(venv / "bin" / "vllm-mlx"), *words, "--port", "{port}")
    return Server(name="vllm-mlx", command=command)
