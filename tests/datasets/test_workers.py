import os

import pytest
from PIL import Image

from nvae.data import threads as threads_module
from nvae.data.pictures.decoding import Picture, decode_pictures


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_workers_are_the_threads_that_decode_pictures(make_config, monkeypatch, workers):
    threads, pool = [], threads_module.ThreadPoolExecutor
    monkeypatch.setattr(threads_module, "ThreadPoolExecutor", lambda count: threads.append(count) or pool(count))
    grays = [Picture(str(i), lambda i=i: Image.new("L", (8, 8), i), str(i)) for i in range(5)]
    config = make_config(dataset={"name": "folder"}, training_parameters={"workers": workers}, image_channels=1)
    decoded = decode_pictures(grays, config, "here")
    assert threads == [workers or os.cpu_count()]
    assert decoded.images_u8[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
