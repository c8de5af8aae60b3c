"""Every recovery in conf/ keeps the contract."""

import pytest
from toys import build, choices, composed_choices

from mad.testing import check_recovery

QUICK = {  # settings for those that train, or take more images than a toy has
    "restorer": {"shadows": 1, "steps": 5},
    "restorer_plus": {"shadows": 1, "steps": 5},
    "bayes": {"shadows": 1},
    "few": {"count": 10},
}


@pytest.mark.parametrize("name", choices("recovery"))
def test_it_passes_the_check(name):
    recovery = build(composed_choices("recovery")[name], **QUICK.get(name, {}))
    check_recovery(recovery, classes=(2, 10) if name in QUICK else (2, 10, 100))
