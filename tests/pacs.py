"""A PACS for tests: keeps DICOM files, answers QIDO-RS, WADO-RS and STOW-RS as far as they are asked for here."""

import io
import json
import re
from collections import Counter
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pydicom

BOUNDARY = "a-boundary"


class Pacs:
    """What it holds, by SOP instance; what was asked, with the headers; and what it does wrong on purpose."""

    def __init__(self):
        self.held, self.asked, self.wrong = {}, [], {}
        self.url = ""

    def put(self, data: bytes) -> pydicom.Dataset:
        told = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        self.held[told.SOPInstanceUID] = (told, data)
        return told

    def of(self, study=None, series=None):
        kept = self.held.values()
        return [
            one
            for one in kept
            if study in (None, one[0].StudyInstanceUID) and series in (None, one[0].SeriesInstanceUID)
        ]


@contextmanager
def a_pacs(context=None):
    """A `Pacs` that listens on the loopback, with TLS where an `ssl.SSLContext` is given."""
    pacs = Pacs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, code, kind="application/dicom+json", body=b"[]", **headers):
            self.send_response(code)
            for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            pacs.asked.append((self.path, dict(self.headers)))
            if self.wrong_on_purpose():
                return
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/web/studies/([\d.]+)/series", path):
                counts = Counter((one.SeriesInstanceUID, one.Modality) for one, _ in pacs.of(found[1]))
                more = pacs.wrong.get("missing", 0)
                told = [
                    {
                        "0020000E": {"vr": "UI", "Value": [uid]},
                        "00080060": {"vr": "CS", "Value": [kind]},
                        "00201209": {"vr": "IS", "Value": [count + more]},
                    }
                    for (uid, kind), count in counts.items()
                ]
                self.answer(200, body=json.dumps(told).encode())
            elif found := re.fullmatch(r"/web/studies/([\d.]+)/series/([\d.]+)", path):
                parts = [data for _, data in pacs.of(found[1], found[2])]
                body = b"".join(
                    f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + b"\r\n"
                    for data in parts
                )
                body += f"--{BOUNDARY}--".encode()
                body = body[: pacs.wrong.get("cut", len(body))]
                if parts:
                    self.answer(200, f'multipart/related; type="application/dicom"; boundary={BOUNDARY}', body)
                else:
                    self.answer(404)
            else:
                self.answer(404)

        def do_POST(self):
            size = self.headers.get("Content-Length")
            data = self.rfile.read(int(size)) if size else b"".join(self.chunks())
            pacs.asked.append((self.path, dict(self.headers)))
            if self.wrong_on_purpose():
                return
            told = BytesParser().parsebytes(
                b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + data
            )
            stored = [pacs.put(part.get_payload(decode=True)) for part in told.get_payload()]
            referenced = [{"00081155": {"vr": "UI", "Value": [one.SOPInstanceUID]}} for one in stored]
            self.answer(200, body=json.dumps({"00081199": {"vr": "SQ", "Value": referenced}}).encode())

        def chunks(self):
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def wrong_on_purpose(self):
            if "refuse" in pacs.wrong:
                failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0x0110]}}]}}
                self.answer(202, body=json.dumps(failed).encode())
            elif "code" in pacs.wrong:
                self.answer(pacs.wrong["code"], **pacs.wrong.get("headers", {}))
            elif "body" in pacs.wrong:
                self.answer(200, pacs.wrong.get("kind", "application/dicom+json"), pacs.wrong["body"])
            else:
                return False
            return True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    pacs.url = f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}/web"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
