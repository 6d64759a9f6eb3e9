"""Where KerasHub is not installed; its own tests are in ``tests/keras``."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from train_loop.sharing.export_keras import export_keras


@pytest.mark.skipif(find_spec("keras_hub") is not None, reason="KerasHub is installed")
def test_a_missing_kerashub_is_named_with_its_extra(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        export_keras(str(tmp_path / "model"), tmp_path / "preset")
    assert str(error.value) == 'the Keras export needs keras_hub: pip install "mlm-train-loop[keras]"'
    assert list(tmp_path.iterdir()) == []
