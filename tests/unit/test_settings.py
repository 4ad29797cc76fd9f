import re
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from condconv_serve.settings import Settings, unknown_variables

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name):
    description = Settings.model_fields[name].description
    assert description, f"{name} needs a description: it is the setting's documentation"
    assert description[0].isupper()
    assert description.endswith(".")


def test_defaults_need_no_environment():
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000), "nothing but this machine, unless it is asked for"
    assert settings.model_store == Path("model_store")
    assert settings.default_model is None
    assert settings.precision == "float32"
    assert settings.max_images_per_request <= settings.max_queue_rows


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "0.0.0.0", "0.0.0.0"),
        ("port", "0", 0),
        ("metrics_port", "9001", 9001),
        ("grpc_port", "8001", 8001),
        ("grpc_tls_key", "tls.key", Path("tls.key")),
        ("api_keys_file", "keys.json", Path("keys.json")),
        ("api_keys", "{}", SecretStr("{}")),
        ("cors_origins", "https://a.org, http://localhost:3000", ("https://a.org", "http://localhost:3000")),
        ("cors_origins", '["https://a.org"]', ("https://a.org",)),
        ("cors_origins", "*", ("*",)),
        ("cors_origins", "", ()),
        ("model_store", "bundles", Path("bundles")),
        ("default_model", "b0", "b0"),
        ("ready_models", "b0-8e, flowers,", ("b0-8e", "flowers")),
        ("ready_models", '["b0-8e"]', ("b0-8e",)),
        ("ready_models", "", None),
        ("device", "gpu", "gpu"),
        ("precision", "bfloat16", "bfloat16"),
        ("engine", "openvino", "openvino"),
        ("streams", "3", 3),
        ("streams", "auto", "auto"),
        ("threads_per_stream", "2", 2),
        ("stall_timeout", "0.5", 0.5),
        ("connect_timeout", "10", 10.0),
        ("max_batch_size", "16", 16),
        ("max_batch_size", "auto", "auto"),
        ("max_queue_rows", "1", 1),
        ("cache_bytes", "1000000000", 10**9),
        ("decode_threads", "auto", "auto"),
        ("workers", "auto", "auto"),
        ("workers", "8", 8),
        ("max_body_bytes", "1024", 1024),
        ("max_pixels", "1000000", 1_000_000),
        ("max_images_per_request", "1", 1),
        ("shutdown_timeout", "0", 0.0),
        ("header_timeout", "2.5", 2.5),
        ("body_timeout", "5", 5.0),
        ("body_total_timeout", "60", 60.0),
        ("max_connections", "10", 10),
        ("log_level", "debug", "debug"),
        ("log_format", "json", "json"),
        ("otlp_endpoint", "https://collector:4318/v1/traces", "https://collector:4318/v1/traces"),
        ("root_path", "/team/classify-2", "/team/classify-2"),
        ("root_path", "", ""),
        ("worker_timeout", "0", 0.0),
        ("worker_timeout", "3", 3.0),
    ],
)
def test_the_environment_sets(name, text, value, monkeypatch):
    monkeypatch.setenv(f"CONDCONV_{name.upper()}", text)
    assert getattr(Settings(), name) == value


def test_what_is_given_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("CONDCONV_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_only_the_prefix_counts(monkeypatch):
    monkeypatch.setenv("PORT", "9000")
    assert Settings().port == 8000


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CONDCONV_API_KEY_FILE", "CONDCONV_API_KEYS_FILE"),
        ("CONDCONV_APIKEYS", "CONDCONV_API_KEYS"),
        ("condconv_max_batchsize", "CONDCONV_MAX_BATCH_SIZE"),
        ("CONDCONV_METRIC_PORT", "CONDCONV_METRICS_PORT"),
        ("CONDCONV_API_KEYS__FILE", "CONDCONV_API_KEYS_FILE"),
        ("CONDCONV_ZZZ", None),
        ("CONDCONV_", None),
    ],
)
def test_unknown_variables_are_found_with_the_nearest_setting(name, nearest):
    environment = {"PATH": "/bin", "MY_CONDCONV_PORT": "1", name: "1"}
    assert list(unknown_variables(environment)) == [(name, nearest)]


def test_every_setting_and_what_others_read_is_known():
    names = [f"CONDCONV_{name.upper()}" for name in Settings.model_fields]
    compose = set(re.findall(r"\$\{(CONDCONV_\w+)", (ROOT / "docker-compose.yml").read_text()))
    others = ["CONDCONV_URL", "CONDCONV_API_KEY", "condconv_port"]
    assert "CONDCONV_IMAGE" in compose
    assert list(unknown_variables(dict.fromkeys([*names, *compose, *others], "1"))) == []


def test_what_kubernetes_sets_for_services_is_no_setting():
    links = {
        "CONDCONV_SERVICE_HOST": "10.0.0.1",
        "CONDCONV_SERVICE_PORT": "80",
        "CONDCONV_SERVICE_PORT_HTTP": "80",
        "CONDCONV_CANARY_SERVICE_HOST": "10.0.0.1",
        "CONDCONV_CANARY_PORT": "tcp://10.0.0.1:80",
        "CONDCONV_PORT_8000_TCP": "tcp://10.0.0.1:80",
        "CONDCONV_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert list(unknown_variables(links)) == []
    assert [name for name, _ in unknown_variables({"CONDCONV_CANARY_PORT": "8001"})] == ["CONDCONV_CANARY_PORT"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("host", ""),  # which a socket takes for all addresses
        ("port", "65536"),
        ("port", "-1"),
        ("port", "http"),
        ("metrics_port", "65536"),
        ("cors_origins", "a.org"),
        ("cors_origins", "https://a.org/"),
        ("cors_origins", "https://a.org;https://b.org"),
        ("cors_origins", "["),
        ("cors_origins", "[1]"),
        ("device", "npu"),
        ("precision", "float16"),
        ("engine", "onnx"),
        ("streams", "0"),
        ("streams", "all"),
        ("streams", "2000"),
        ("threads_per_stream", "0"),
        ("threads_per_stream", "auto"),
        ("stall_timeout", "0"),
        ("connect_timeout", "0"),
        ("max_batch_size", "0"),
        ("max_batch_size", "2.5"),
        ("max_queue_rows", "0"),
        ("cache_bytes", "-1"),
        ("decode_threads", "-1"),
        ("workers", "0"),
        ("workers", "many"),
        ("worker_timeout", "-1"),
        ("worker_timeout", "2.9"),
        ("worker_timeout", "nan"),
        ("max_body_bytes", "1"),
        ("max_pixels", "0"),
        ("max_images_per_request", "0"),
        ("shutdown_timeout", "-1"),
        ("header_timeout", "0"),
        ("body_timeout", "0"),
        ("body_total_timeout", "-1"),
        ("max_connections", "0"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("otlp_endpoint", "collector:4318"),
        ("ready_models", "b0-8e/1"),
        ("ready_models", "B0 8e"),
        ("ready_models", "[1]"),
        ("root_path", "/"),
        ("root_path", "classify"),
        ("root_path", "/classify/"),
        ("root_path", "//classify"),
        ("root_path", "/a//b"),
        ("root_path", "/a/../b"),
        ("root_path", "/a b"),
        ("root_path", "/a%20b"),
        ("root_path", "/a?b"),
        ("root_path", '/"><script>'),
        ("root_path", "/ä"),
        ("root_path", "https://example.org/classify"),
    ],
)
def test_impossible_values_are_refused(name, text, monkeypatch):
    monkeypatch.setenv(f"CONDCONV_{name.upper()}", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert {error["loc"][0] for error in caught.value.errors()} == {name}


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1
