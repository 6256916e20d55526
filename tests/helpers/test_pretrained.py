"""helpers.pretrained: torchvision's cache, damage, and no network."""

import hashlib
import http.server
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch
from torchvision import models
from torchvision.models import SqueezeNet1_1_Weights, VGG19_Weights

from helpers.pretrained import PretrainedError, cached_file, pretrained_or_random

SMALL = models.squeezenet1_1, SqueezeNet1_1_Weights.IMAGENET1K_V1


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, and no way out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def no_network(request, *args, **kwargs):
    raise urllib.error.URLError("Name or service not known")


def put(cache, weights, state, monkeypatch):
    """Store `state` where torchvision looks, under a name that holds its hash."""
    torch.save(state, cache / "made.pth")
    digest = hashlib.sha256((cache / "made.pth").read_bytes()).hexdigest()
    stem = weights.url.rsplit("-", 1)[0]
    monkeypatch.setattr(weights.value, "url", f"{stem}-{digest[:8]}.pth")
    return (cache / "made.pth").rename(cached_file(weights))


def test_vgg19_is_looked_for_under_its_real_name(cache):
    file = cached_file(VGG19_Weights.IMAGENET1K_V1)
    assert file == cache / "vgg19-dcbb9e9d.pth"


def test_a_made_vgg19_in_the_cache_is_read_by_torchvision(cache, monkeypatch, capsys):
    """All 143,667,240 parameters in a small file: torch.save stores each value once."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in models.vgg19().state_dict().items()}
    state = {
        key: torch.tensor(i / 64).expand(shape)
        for i, (key, shape) in enumerate(shapes.items())
    }
    weights = VGG19_Weights.IMAGENET1K_V1
    file = put(cache, weights, state, monkeypatch)
    assert file.stat().st_size < 100_000
    model, pretrained = pretrained_or_random(models.vgg19, weights)
    assert pretrained
    assert sum(p.numel() for p in model.parameters()) == 143_667_240
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert capsys.readouterr().out == ""


def test_no_network_gives_one_line_and_random_weights(cache, capsys):
    builder, weights = SMALL
    earlier = socket.getdefaulttimeout()
    model, pretrained = pretrained_or_random(builder, weights)
    assert not pretrained
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    assert socket.getdefaulttimeout() == earlier
    (line,) = capsys.readouterr().out.splitlines()
    for told in (weights.url, str(cached_file(weights)), "not known", "RANDOM"):
        assert told in line
    assert list(cache.iterdir()) == []


def test_offline_nothing_is_tried(cache, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_: pytest.fail("it was tried"))
    assert pretrained_or_random(*SMALL)[1] is False
    assert "COURSE_OFFLINE is set" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "flip", "page", "empty"])
def test_a_damaged_file(cache, monkeypatch, damage):
    builder, weights = SMALL
    file = put(cache, weights, builder().state_dict(), monkeypatch)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1  # inside a tensor
    damaged = {"cut": raw[:5000], "flip": raw, "page": b"<html>", "empty": b""}
    file.write_bytes(damaged[damage])
    with pytest.raises(PretrainedError, match=r"is damaged.*Delete it") as error:
        pretrained_or_random(builder, weights)
    assert str(file) in str(error.value)


def test_torchvision_alone_loads_a_flipped_bit_without_a_word(cache, monkeypatch):
    """Why the helper checks: if this fails, torchvision has begun to."""
    builder, weights = SMALL
    model = builder()
    file = put(cache, weights, model.state_dict(), monkeypatch)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    loaded = builder(weights=weights).state_dict()
    equal = [torch.equal(v, loaded[k]) for k, v in model.state_dict().items()]
    assert equal.count(False) == 1


def test_a_whole_file_of_another_model_is_an_error(cache, monkeypatch):
    builder, weights = SMALL
    put(cache, weights, {"other": torch.zeros(1)}, monkeypatch)
    with pytest.raises(RuntimeError, match="Missing key"):
        pretrained_or_random(builder, weights)


@pytest.fixture
def server(monkeypatch):
    """A web server here, which `answer` speaks for; gives the address to ask."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answer = None

        def do_GET(self):
            type(self).answer(self)

        def log_message(self, *args):
            pass

    monkeypatch.setattr(torch.hub, "urlopen", urllib.request.urlopen)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield Handler, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def test_a_download_goes_to_the_cache(cache, monkeypatch, server):
    builder, weights = SMALL
    handler, address = server
    model = builder()
    file = put(cache, weights, model.state_dict(), monkeypatch)
    body = file.read_bytes()
    file.unlink()

    def send(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    handler.answer = send
    monkeypatch.setattr(weights.value, "url", address + file.name)
    loaded, pretrained = pretrained_or_random(builder, weights)
    assert pretrained
    assert file.read_bytes() == body
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def page(request):
    """What a hotel's network sends in place of any file."""
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"<html>log in</html>")


def refuse(request):
    request.send_error(403)


def broken_off(request):
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x" * 10)


def silent(request):
    time.sleep(2)


@pytest.mark.parametrize("answer", [page, refuse, broken_off, silent])
def test_a_download_that_fails(cache, monkeypatch, capsys, server, answer):
    builder, weights = SMALL
    handler, address = server
    handler.answer = answer
    monkeypatch.setattr(weights.value, "url", address + "squeezenet1_1-b8a52dc0.pth")
    start = time.monotonic()
    _, pretrained = pretrained_or_random(builder, weights, timeout_s=0.5)
    assert time.monotonic() - start < 10
    assert not pretrained
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert list(cache.iterdir()) == [], "no half a file is left"
