"""TLS of both receivers, by files: the real exporters connect, and who shows no certificate where one is asked for does not."""

from __future__ import annotations

import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from tests.collector.capture_process import command, running, trace_request

from spanloop_collector.errors import TlsError
from spanloop_collector.importing import import_files
from spanloop_collector.tls import Tls
from spanloop_store import flush, read_owner


@dataclass
class Files:
    ca: Path
    cert: Path
    key: Path
    other_ca: Path
    client: Path  # certificate and key

    @property
    def options(self) -> list[str]:
        return ["--tls-cert", str(self.cert), "--tls-key", str(self.key)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("agent")
    found = Files(*(folder / name for name in ("ca.pem", "cert.pem", "key.pem", "other.pem", "client.pem")))
    authority.cert_pem.write_to_path(str(found.ca))
    other.cert_pem.write_to_path(str(found.other_ca))
    server.private_key_pem.write_to_path(str(found.key))
    for blob in server.cert_chain_pems:
        blob.write_to_path(str(found.cert), append=True)
    client.private_key_and_cert_chain_pem.write_to_path(str(found.client))
    return found


def one_span(exporter: SpanExporter, name: str) -> list[SpanExportResult]:
    """Sends one span and returns what the exporter said."""
    results: list[SpanExportResult] = []
    real = exporter.export

    class Noting(SimpleSpanProcessor):
        def on_end(self, span: object) -> None:
            results.append(real([span]))  # type: ignore[list-item]  # a readable span

    provider = TracerProvider()
    provider.add_span_processor(Noting(exporter))
    provider.get_tracer("tls").start_span(name).end()
    provider.shutdown()
    return results


def test_the_official_exporters_speak_tls(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # they win over the exporter's own setting
        monkeypatch.delenv(variable, raising=False)
    with running(tmp_path / "store", *files.options) as capture:
        assert capture.otlp_http.startswith("https://")
        http = HttpExporter(endpoint=f"{capture.otlp_http}/v1/traces", certificate_file=str(files.ca))
        import grpc

        secure = grpc.ssl_channel_credentials(files.ca.read_bytes())
        for name, exporter in (("http", http), ("grpc", GrpcExporter(capture.otlp_grpc, credentials=secure))):
            assert one_span(exporter, name) == [SpanExportResult.SUCCESS], name
        # What runs on this machine has neither certificate nor name: it finds a plain listener on loopback.
        owner = read_owner(capture.url)
        assert owner is not None
        assert owner.otlp_http.startswith("http://127.0.0.1:")
        (tmp_path / "file.pb").write_bytes(trace_request("imported").SerializeToString())
        assert import_files(capture.url, [tmp_path / "file.pb"], print).spans == 1
        assert flush(capture.url) is not None
        assert capture.query("SELECT SpanName FROM otel_traces ORDER BY 1") == [
            ("grpc",),
            ("http",),
            ("imported",),
        ]
        # And plain text is not understood where TLS is spoken.
        with pytest.raises(OSError, match=r".") as caught:
            urllib.request.urlopen(f"{capture.otlp_http.replace('https', 'http')}/healthz", timeout=30)
        assert not isinstance(caught.value, urllib.error.HTTPError) or caught.value.code == 400


def healthy(address: str, context: ssl.SSLContext) -> bool:
    with urllib.request.urlopen(f"{address}/healthz", timeout=30, context=context) as answer:
        return bool(answer.status == 200)


def test_client_certificates_are_demanded_where_an_authority_is_named(tmp_path: Path, files: Files) -> None:
    import grpc

    with running(tmp_path, *files.options, "--tls-client-ca", str(files.ca)) as capture:
        context = ssl.create_default_context(cafile=str(files.ca))
        with pytest.raises(OSError, match=r".") as caught:
            healthy(capture.otlp_http, context)
        assert not isinstance(caught.value, urllib.error.HTTPError)
        context.load_cert_chain(files.client)
        assert healthy(capture.otlp_http, context)
        ours = files.client.read_bytes()
        for credentials, expected in (
            (grpc.ssl_channel_credentials(files.ca.read_bytes(), ours, ours), True),
            (grpc.ssl_channel_credentials(files.ca.read_bytes()), False),
        ):
            with grpc.secure_channel(capture.otlp_grpc, credentials) as channel:
                call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
                if expected:
                    assert call(trace_request("a").SerializeToString(), timeout=30) == b""
                else:
                    with pytest.raises(grpc.RpcError) as refused:
                        call(trace_request("b").SerializeToString(), timeout=30)
                    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_tls_alone_does_not_open_other_addresses(tmp_path: Path, files: Files) -> None:
    done = subprocess.run(
        [*command(tmp_path), *files.options, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "SPANLOOP_TOKEN is not set" in done.stderr


def test_files_that_cannot_be_used_are_one_clear_error(tmp_path: Path, files: Files) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    missing = tmp_path / "missing.pem"
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    for cert, key, ca, said in (
        (files.cert, None, None, "a certificate and its key"),
        (None, None, files.ca, "a certificate and its key"),
        (missing, files.key, None, "missing.pem cannot be read: No such file"),
        (files.cert, empty, None, "no certificate and its key"),
        (files.cert, files.client, None, "no certificate and its key"),
        (files.cert, locked, None, "no certificate and its key"),
        (files.cert, files.key, empty, "holds no certificate"),
        (files.cert, files.key, missing, "missing.pem cannot be read"),
    ):
        with pytest.raises(TlsError, match=said):
            Tls.of(cert, key, ca)
    assert Tls.of(None, None, None) is None
    up = [
        sys.executable,
        "-m",
        "spanloop.main",
        "up",
        "--store",
        f"chdb://{tmp_path}/s",
        "--gateway-port",
        "0",
    ]
    up += ["--otlp-http-port", "0", "--otlp-grpc-port", "0", "--clickhouse-port", "0"]
    done = subprocess.run([*up, "--tls-cert", str(missing)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["error: TLS needs a certificate and its key", "next:  give both: --tls-cert FILE --tls-key FILE"],
    )
