#!/usr/bin/env bash
# Everything that continuous integration checks, in order of price. Called by `make test`.
#
#   bash tests/run.sh                      everything
#   bash tests/run.sh --changed [COMMIT]   papers and tests that a change touches, and two sentinels (make test-changed)
set -euo pipefail
cd "$(dirname "$0")/.."
export LAYERBOOK_TIER= HF_HUB_OFFLINE=1 MPLBACKEND=agg TOKENIZERS_PARALLELISM=false DVC_NO_ANALYTICS=1
eval "$(python -m layerbook folders)"  # kernels need some to write to; a home there may not be
export MPLCONFIGDIR="$PWD/build/matplotlib"  # there may be no home folder to write to
step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

step "style"
ruff check .
ruff format --check .
lint-imports --no-cache
step "conventions"; layerbook check
step "freshness of the evidence"; layerbook fresh
step "data, networks, results and pages as recorded"
dvc repro -q
if ! dvc status -q; then dvc status; echo "results are stale: run 'make repro'"; exit 1; fi
step "the book"; layerbook build
# Each published notebook is executed once: on a warm kernel, but for one that shows that plain ones print the same.
PLAIN=results/cpu/wave-cnn-compression.ipynb
if [ "${1:-}" = --changed ]; then
  layerbook changed ${2:+--since "$2"}
  chosen=(${2:+--since "$2"})
else
  chosen=(--all)
fi
notebooks=$(layerbook changed "${chosen[@]}" --only notebooks)
tests=$(layerbook changed "${chosen[@]}" --only tests)
notebooks=$(grep -vxF "$PLAIN" <<< "$notebooks" || true)
NBVAL=(python -m pytest -q -p no:cacheprovider --nbval-lax --nbval-cell-timeout=300)
step "published notebooks at the smoke tier, on warm kernels"
[ -z "$notebooks" ] || JUPYTER_PATH="$PWD/src/layerbook/pipeline/jupyter" LAYERBOOK_TIER=smoke OMP_NUM_THREADS=1 "${NBVAL[@]}" --nbval-kernel-name layerbook-warm \
  -n 2 --dist loadfile $notebooks
step "one on a plain kernel: its checked cells print the same"
LAYERBOOK_TIER=smoke "${NBVAL[@]}" --nbval-current-env "$PLAIN"
step "unit, paper, pipeline, book and browser tests"
# Files that take longest go first, so that no worker is left alone with one of them at the end.
LONG="driver checkouts browser_fonts cluster again environment kernels prepare runner browser folders pipeline"
long=$(for name in $LONG; do grep -xF "tests/test_$name.py" <<< "$tests" || true; done)
[ -z "$tests" ] || OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
  $long $(grep -vxF "$long" <<< "$tests")
step "nothing was re-recorded"; git diff --exit-code -- data.dvc dvc.lock dvc.yaml params.yaml results
step "done"
