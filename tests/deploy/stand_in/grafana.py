"""Stands in for Grafana: does as its user what Grafana would do with its files, then answers on its port."""

import http.server
import json
import os
import re
import urllib.request
from pathlib import Path

assert len(Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text().strip()) >= 8
assert json.loads(Path(os.environ["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).read_text())["panels"]
Path("/var/lib/grafana/grafana.db").write_bytes(bytes(2**20))

(data_source,) = Path("/etc/grafana/provisioning/datasources").iterdir()
(address,) = re.findall(r"^ *url: (\S+)$", data_source.read_text(), re.MULTILINE)


class Answer(http.server.BaseHTTPRequestHandler):
    """Passes what Prometheus says about itself."""

    def do_GET(self) -> None:
        """Answer, whatever is asked for."""
        with urllib.request.urlopen(f"{address}/api/v1/status/buildinfo", timeout=5) as answer:
            body = answer.read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Answer).serve_forever()
