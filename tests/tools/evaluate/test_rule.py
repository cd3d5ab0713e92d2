"""Decisions by hand, fitted values against a known truth and a finer search, and cross-fitting."""

from dataclasses import replace

import numpy as np
import pytest

from tools.evaluate.calibration import PRIOR, abstention, cross_fitted, fit
from tools.evaluate.metrics import calibration_error
from tools.evaluate.rule import DecisionRule

SETS = [(0,), (1,), (2,), (0, 1)]
LOGITS = np.array([[2.0, -1, -1], [-1, 3, 1], [1, -2, -3], [-1, -2, -3]])


def rule(targets="multi", decide_by="threshold", exclusive=(), combinations=SETS):
    return DecisionRule.unfitted(targets, decide_by, combinations, 3, exclusive)


def decided(rule, logits=LOGITS):
    return rule.answer(np.asarray(logits, float)).decision.astype(int).tolist()


def simulate(n, temperature=1.0, shift=0.0, seed=0):
    """Logits, and labels that are true with probability sigmoid(logit / temperature + shift)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 3, (n, 3))
    truth = rng.random((n, 3)) < 1 / (1 + np.exp(-(logits / temperature + shift)))
    truth[~truth.any(axis=1), 0] = True
    return logits, truth


def test_probabilities_by_the_textbook():
    assert rule().probabilities(LOGITS) == pytest.approx(1 / (1 + np.exp(-LOGITS)))
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    assert rule("single").probabilities(LOGITS) == pytest.approx(softmax)
    extreme = rule().probabilities(np.array([[-1e4, 1e4, 0]]))
    assert extreme.tolist() == [[0, 1, 0.5]]
    halved = replace(rule(), temperatures=np.full(3, 2.0))
    assert halved.probabilities(LOGITS) == pytest.approx(1 / (1 + np.exp(-LOGITS / 2)))


def test_decisions_by_hand():
    """Sigmoid 0.5 is logit 0: photo 1 gets classes 1 and 2; photo 3 has none above, so it gets the most probable."""
    assert decided(rule()) == [[1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert decided(replace(rule(), thresholds=np.array([0.5, 0.5, 0.9])))[1] == [0, 1, 0]
    assert decided(rule(decide_by="argmax"))[1] == [0, 1, 0]
    assert decided(rule("single"))[1] == [0, 1, 0]


def test_an_exclusive_label_is_never_decided_with_another():
    assert decided(rule(exclusive=[1]), [[1, 3, -1], [3, 1, 2]]) == [[0, 1, 0], [1, 0, 1]]
    assert decided(rule(exclusive=[1]), [[-1, 3, -1], [-3, -1, -2]]) == [[0, 1, 0], [0, 1, 0]]
    assert decided(rule(exclusive=[0, 1]), [[1, 3, 2], [2, 1, 3], [1, 3, -1]]) == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    # the most probable label does not reach its threshold: it decides whether an exclusive one stays, but is not given
    high = replace(rule(exclusive=[0, 1]), thresholds=np.array([0.5, 0.5, 0.99]))
    assert decided(high, [[1, 2, 3], [1, -1, 3]]) == [[0, 1, 0], [1, 0, 0]]


def test_exclusive_labels_photo_by_photo():
    """Against the rule in words, on 2,000 photos of 5 labels, 2 of which are exclusive."""
    rng = np.random.default_rng(0)
    logits, exclusive = rng.normal(0, 2, (2000, 5)), {1, 4}
    decide = replace(DecisionRule.unfitted("multi", "threshold", [], 5, [1, 4]), thresholds=rng.random(5))
    for row, decision in zip(logits, decide.answer(logits).decision, strict=True):
        p = 1 / (1 + np.exp(-row))
        given = {c for c in range(5) if p[c] >= decide.thresholds[c]} or {int(p.argmax())}
        if given & exclusive and len(given) > 1:
            best = max(given, key=lambda c: p[c])
            given = {best} if (best in exclusive and best == p.argmax()) or given <= exclusive else given - exclusive
        assert set(np.flatnonzero(decision)) == given


def test_a_combination_is_the_likeliest_that_training_saw():
    """Against the product of probabilities of every set; (1, 2) was never seen in training."""
    chosen = decided(rule(decide_by="combination"))
    p = 1 / (1 + np.exp(-LOGITS))
    for row, got in enumerate(chosen):
        products = [np.prod([p[row, c] if c in labels else 1 - p[row, c] for c in range(3)]) for labels in SETS]
        assert np.flatnonzero(got).tolist() == list(SETS[int(np.argmax(products))])
    assert chosen[1] == [0, 1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fitting_recovers_the_temperature_and_improves_calibration(temperature):
    logits, truth = simulate(6000, temperature)
    fitted = fit(rule(), logits, truth)
    assert fitted.temperatures[1:] == pytest.approx([temperature] * 2, rel=0.1)
    if temperature != 1:
        before, after = (calibration_error(r.probabilities(logits), truth)[0] for r in (rule(), fitted))
        assert after < before / 2


def test_a_softmax_has_one_temperature_for_all_classes():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (5000, 3))
    p = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    truth = np.eye(3, dtype=bool)[[rng.choice(3, p=row) for row in p]]
    assert fit(rule("single"), logits, truth).temperatures == pytest.approx([2.0] * 3, rel=0.08)


def test_thresholds_are_where_f1_is_highest_but_drawn_towards_a_half():
    logits, truth = simulate(4000, shift=-1.5)
    fitted = fit(rule(), logits, truth)
    probability = fitted.probabilities(logits)
    for c in range(3):

        def f1(t, c=c):
            given = probability[:, c] >= t
            return 2 * (given & truth[:, c]).sum() / (given.sum() + truth[:, c].sum())

        fine = np.linspace(0.01, 0.99, 197)
        assert f1(fitted.thresholds[c]) > max(f1(t) for t in fine) - 0.004
    few = fit(rule(), logits[:20], truth[:20])
    share = truth[:20].sum(axis=0) / (truth[:20].sum(axis=0) + PRIOR)
    assert (np.abs(few.thresholds - 0.5) <= 0.45 * share + 1e-9).all()


def test_nothing_to_learn_from_leaves_the_rule_alone():
    for n in (0, 1):
        logits, truth = np.ones((n, 3)), np.tile([True, False, False], (n, 1))
        for targets in ("single", "multi"):
            fitted = fit(rule(targets), logits, truth)
            assert np.isfinite(fitted.temperatures).all()
            assert fitted.thresholds[1:].tolist() == [0.5, 0.5]
            assert cross_fitted(rule(targets), logits, truth).probability.shape == (n, 3)


def test_cross_fitting_never_fits_a_rule_on_the_photo_it_answers():
    """Finds by changing the logits of one photo which others depend on it."""
    logits, truth = simulate(61, shift=-1)
    answers = cross_fitted(rule(), logits, truth)
    probability, decision = answers.probability, answers.decision
    depends_on = {}
    for row in range(61):
        # this photo depends on another when changed logits of that one change its probabilities
        for other in (0, 30, 60):
            if other != row:
                moved = logits.copy()
                moved[other] += 5
                depends_on.setdefault(row, set())
                if not np.allclose(cross_fitted(rule(), moved, truth).probability[row], probability[row]):
                    depends_on[row].add(other)
    groups = {frozenset(others) for row, others in depends_on.items() if row not in (0, 30, 60)}
    assert len(groups) == 2  # two halves
    assert not frozenset.intersection(*groups)  # that depend on different photos
    for row in (0, 30, 60):
        moved = logits.copy()
        moved[row] += 5
        fitted = cross_fitted(rule(), moved, truth).probability
        ratio = np.log(fitted[row] / (1 - fitted[row])) / (logits[row] + 5)
        assert ratio == pytest.approx(
            np.log(probability[row] / (1 - probability[row])) / logits[row]
        )  # same temperature
    assert decision.any(axis=1).all()


def test_abstaining_by_hand():
    confidence = np.array([0.9, 0.8, 0.8, 0.7, 0.6])
    right = np.array([True, True, False, True, True])
    assert abstention(confidence, right, 0.2) == 0.6  # 1 wrong of 5
    assert abstention(confidence, right, 0.19) == 0.9  # 1 of 4 and 1 of 3 are too many; 0.8 comes as a pair
    assert abstention(confidence, ~right, 0.1) == float("inf")


def test_a_powerset_learns_which_labels_go_together():
    """In truth 0 is alone whenever its logit is positive; the product of probabilities would often decide 0 and 1."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2000, 3))
    truth = np.zeros((2000, 3), bool)
    truth[np.arange(2000), np.where(logits[:, 0] > 0, 0, np.where(logits[:, 1] > logits[:, 2], 1, 2))] = True
    fresh = rng.normal(0, 3, (2000, 3))
    wanted = np.where(fresh[:, 0] > 0, 0, np.where(fresh[:, 1] > fresh[:, 2], 1, 2))
    fitted = fit(rule(decide_by="powerset"), logits, truth)
    answers = fitted.answer(fresh)
    right, confidence = answers.decision[np.arange(2000), wanted], answers.confidence
    product = fit(rule(decide_by="combination"), logits, truth)
    assert right.mean() > 0.9
    assert (product.answer(fresh).decision.sum(axis=1) == 1).mean() < 0.9
    assert confidence[right].mean() > 0.2 + confidence[~right].mean(), "wrong decisions must have a lower confidence"
    assert fitted.unfit().powerset is None
    assert decided(fitted.unfit()) == decided(rule(decide_by="combination"))


def test_more_than_a_hundred_label_sets_are_decided_as_combinations(monkeypatch):
    """120 sets in training and validation: no regression is fitted, and the answers come in blocks of photos."""
    rng = np.random.default_rng(0)
    sets = [(a, b) for a in range(16) for b in range(a)]
    truth = np.zeros((360, 16), bool)
    for row, labels in enumerate(sets * 3):
        truth[row, list(labels)] = True
    logits = rng.normal(4 * truth - 2, 2)
    by_powerset, by_set = (
        fit(DecisionRule.unfitted("multi", how, sets, 16), logits, truth) for how in ("powerset", "combination")
    )
    assert by_powerset.powerset is None
    assert fit(by_powerset, logits[:99], truth[:99]).powerset is not None
    whole = by_set.answer(logits)
    p = whole.probability[:, None]
    members = np.unique(truth, axis=0)
    likelihoods = np.where(members, p, 1 - p).prod(axis=2)
    assert (whole.decision == members[likelihoods.argmax(axis=1)]).all()
    monkeypatch.setattr("tools.evaluate.rule.BLOCK", 120 * 50)
    for one, other in zip(vars(whole).values(), vars(by_powerset.answer(logits)).values(), strict=True):
        assert np.allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("targets", ["single", "multi"])
@pytest.mark.parametrize("decide_by", ["threshold", "argmax", "combination", "powerset"])
def test_confidence_and_probabilities_are_those_of_one_joint_distribution(targets, decide_by):
    """Against the probabilities of all label sets: a powerset's own, one label per photo, or independent labels."""
    logits, truth = simulate(500)
    fitted = fit(rule(targets, decide_by), logits, truth)
    answers = fitted.answer(logits)
    sets = np.array(list(np.ndindex(2, 2, 2)), bool)
    if targets == "multi" and decide_by == "powerset":
        sets, joint = fitted.powerset.sets, fitted.powerset.probabilities(fitted.probabilities(logits))
    elif targets == "single":
        sets, joint = np.eye(3, dtype=bool), fitted.probabilities(logits)
    else:
        p = fitted.probabilities(logits)[:, None]
        joint = np.where(sets, p, 1 - p).prod(axis=2)
    assert joint.sum(axis=1) == pytest.approx(np.ones(500))
    for row, members in enumerate(answers.decision):
        assert answers.confidence[row] == pytest.approx(joint[row][(sets == members).all(axis=1)].sum())
        assert answers.probability[row] == pytest.approx(joint[row] @ sets)
        assert answers.confidence[row] <= answers.probability[row][members].min() + 1e-12
    assert ((answers.probability >= 0) & (answers.probability <= 1)).all()


@pytest.mark.parametrize("sets", [1, 2, 3])
def test_a_powerset_is_scikit_learns_regression_for_any_number_of_sets(sets):
    from sklearn.linear_model import LogisticRegression

    logits, _ = simulate(300)
    numbers = logits[:, :sets].argmax(axis=1)
    fitted = fit(rule(decide_by="powerset"), logits, np.eye(3, dtype=bool)[numbers])
    if sets == 1:
        assert fitted.powerset is None
        return
    tempered = logits / fitted.temperatures
    oracle = LogisticRegression(C=0.1, max_iter=5000).fit(tempered, numbers).predict_proba(tempered)
    order = fitted.powerset.sets.argmax(axis=1)
    assert fitted.powerset.probabilities(fitted.probabilities(logits)) == pytest.approx(oracle[:, order], abs=1e-3)
