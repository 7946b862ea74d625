#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the tests marked `gpu`, the benchmarks, rows of the claims table, refinements.
#
#     benchmarks/gpu_session.sh RESULTS [DATA]
#     TOY=1 benchmarks/gpu_session.sh RESULTS DATA     the same parts on a CPU, tiny: that the script itself works
#
# Each part leaves one file in RESULTS; a part whose file is there is skipped, so the script can be run again after an
# interruption. A part that fails leaves PART.failed with its output and the others go on; the exit code is then 1.
# DATA is the folder of the image sets (imagenet_originals, imagenet1000, fg_human, ...); without it the parts that need
# photographs are left out. CLAIMS_MINUTES (default 20, 0: none) bounds the claims, which continue by themselves;
# CLAIMS_JOBS (default 4) rows are trained at a time. PYTHON is the interpreter to use.
set -uo pipefail
cd "$(dirname "$0")/.."
RESULTS=${1:?usage: benchmarks/gpu_session.sh RESULTS [DATA]}
DATA=${2:-}
PYTHON=${PYTHON:-python}
CLAIMS_MINUTES=${CLAIMS_MINUTES:-20}
mkdir -p "$RESULTS"
failures=0
if [ -n "${TOY:-}" ]; then
    device=cpu
    size=(--steps 1 --blocks 1 --methods simclr --batch-size 4 --device cpu)
    photometric=(--batch-size 2 --size 32 --rounds 1)
    loader=(--rounds 1 --samples 4)
    claims=(--scale smoke --seeds 1 --rows random --columns people)
    refine=(--trial "rounds=1 epochs=1 least_steps=2 width=4 image_size=32" --workers 1)
else
    device=cuda
    size=(--full)
    photometric=(--batch-size 256)
    loader=()
    claims=(--scale small --jobs "${CLAIMS_JOBS:-4}" --workers 2)
    refine=(--trial "" --trial rounds=3 --trial "epochs=40 width=24" --weights .5 --small 20 60 200)
fi

# part NAME FILE COMMAND...: run COMMAND unless FILE is there; what COMMAND prints becomes FILE if it writes none
part() {
    local name=$1 file=$RESULTS/$2
    shift 2
    if [ -s "$file" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name ($(date +%H:%M:%S))"
    if "$@" >"$RESULTS/$name.log" 2>&1; then
        rm -f "$RESULTS/$name.failed"
        [ -s "$file" ] || mv "$RESULTS/$name.log" "$file"
    else
        mv "$RESULTS/$name.log" "$RESULTS/$name.failed"
        failures=1
        tail -n 5 "$RESULTS/$name.failed"
    fi
}

# with_rival NAME MODULE FILE COMMAND...: a part that needs a library of `pip install 'hapicl[bench]'`
with_rival() {
    local name=$1 module=$2
    shift 2
    if "$PYTHON" -c "import $module" 2>/dev/null; then
        part "$name" "$@"
    else
        echo "== $name: left out, $module is not installed (pip install 'hapicl[bench]')"
    fi
}

# step NAME ARGUMENTS...: one part of the step's benchmark
step() {
    local name=step_$1
    shift
    part "$name" "$name.json" "$PYTHON" benchmarks/step.py "${size[@]}" --out "$RESULTS/$name.json" "$@"
}

if [ "$device" = cuda ]; then
    "$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no CUDA device here")' || exit 1
    part tests gpu_tests.txt "$PYTHON" -m pytest -q -m gpu tests
fi
step overhead --only overhead
step throughput --only throughput
[ "$device" = cuda ] && step compiled --only throughput --compile # minutes of compiling on a CPU
[ "$device" = cuda ] && step levers --only levers
with_rival photometric kornia photometric.json \
    "$PYTHON" benchmarks/photometric.py --device "$device" "${photometric[@]}" --out "$RESULTS/photometric.json"
if [ -n "$DATA" ]; then
    with_rival loader lightly loader.json \
        "$PYTHON" benchmarks/loader.py "$DATA/imagenet_originals" "${loader[@]}" --out "$RESULTS/loader.json"
    part masks masks.h5 \
        "$PYTHON" -m hapicl masks build --images "$DATA/imagenet1000" --recipe fast --out "$RESULTS/masks.h5"
    [ -s "$RESULTS/masks.h5" ] && step real_input --only throughput --masks "$RESULTS/masks.h5"
    if [ "$CLAIMS_MINUTES" != 0 ] && [ -s "$RESULTS/masks.h5" ]; then
        part claims claims.json "$PYTHON" benchmarks/claims.py "${claims[@]}" --device "$device" \
            --data "$DATA" --images "$DATA/imagenet1000" --masks "default=$RESULTS/masks.h5" \
            --work "$RESULTS/claims" --budget-minutes "$CLAIMS_MINUTES" --docs "$RESULTS" \
            --out "$RESULTS/claims.json"
    fi
    scored=()
    for set in fg_human fg_bag_even; do
        [ -d "$DATA/$set" ] && scored+=(--set "$set=$DATA/$set")
    done
    if [ ${#scored[@]} != 0 ]; then
        [ -s "$RESULTS/refine.txt" ] || rm -rf "$RESULTS/refine" # of a session that was cut off
        part refine refine.txt "$PYTHON" benchmarks/refine.py "${scored[@]}" --unlabelled "$DATA/imagenet1000" \
            "${refine[@]}" --device "$device" --work "$RESULTS/refine" --out "$RESULTS/refine.json"
    fi
fi
exit $failures
