#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the tests marked `gpu`, then the benchmarks, then the claims' rows.
#
#     benchmarks/gpu_session.sh RESULTS_DIR [MASKS.h5]
#
# Each part leaves one file in RESULTS_DIR; a part whose file is there is skipped, so the script can be run again
# after an interruption. A part that fails leaves PART.failed with its output and the others go on; the exit code is
# then 1. Without MASKS.h5 the parts that need real images are left out.
set -uo pipefail
cd "$(dirname "$0")/.."
RESULTS=${1:?usage: benchmarks/gpu_session.sh RESULTS_DIR [MASKS.h5]}
MASKS=${2:-}
PYTHON=${PYTHON:-python}
mkdir -p "$RESULTS"
failures=0

# part NAME FILE COMMAND...: run COMMAND unless FILE is there; COMMAND writes FILE itself
part() {
    local name=$1 file=$RESULTS/$2
    shift 2
    if [ -s "$file" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name"
    if "$@" >"$RESULTS/$name.log" 2>&1; then
        rm -f "$RESULTS/$name.failed"
        [ -s "$file" ] || mv "$RESULTS/$name.log" "$file"
    else
        mv "$RESULTS/$name.log" "$RESULTS/$name.failed"
        failures=1
        tail -n 5 "$RESULTS/$name.failed"
    fi
}

"$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no CUDA device here")' || exit 1

part tests gpu_tests.txt "$PYTHON" -m pytest -q -m gpu tests
part overhead step_overhead.json "$PYTHON" benchmarks/step.py --full --only overhead --out "$RESULTS/step_overhead.json"
part throughput step_throughput.json \
    "$PYTHON" benchmarks/step.py --full --only throughput --out "$RESULTS/step_throughput.json" ${MASKS:+--masks "$MASKS"}
part compiled step_compiled.json \
    "$PYTHON" benchmarks/step.py --full --only throughput --compile --out "$RESULTS/step_compiled.json"
part levers step_levers.json "$PYTHON" benchmarks/step.py --full --only levers --out "$RESULTS/step_levers.json"
for script in photometric loader; do
    [ -f "benchmarks/$script.py" ] || continue
    part "$script" "$script.json" "$PYTHON" "benchmarks/$script.py" --out "$RESULTS/$script.json"
done
if [ -n "$MASKS" ]; then
    for script in benchmarks/claims*.py; do
        [ -f "$script" ] || continue
        name=$(basename "$script" .py)
        part "$name" "$name.json" "$PYTHON" "$script" --masks "$MASKS" --out "$RESULTS/$name.json"
    done
fi
exit $failures
