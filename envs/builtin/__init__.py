"""The environments that come with the package; `turnwise list` shows their ids."""
