#!/bin/bash
# The real comparison on a CPU: random weights, a SimCLR and a HAPiCL-S run at 3 label fractions and 3 seeds, on
# CamVid and people (frozen probe, at the sizes of the claims table's cpu scale) and raccoons (small detector).
#
#     benchmarks/compare.sh DATA SIMCLR HAPICL OUT [HOURS]
#
# DATA holds seg_camvid_trainval, fg_human and det_raccoon; SIMCLR and HAPICL are weights as `hapicl evaluate`
# takes them, `{seed}` in them standing for the seed. Each comparison goes on where it was left; HOURS is the budget
# of each. What is there is in OUT/NAME/compare.html. Ends with 75 while cells are missing.
#
# A cell of trained weights took 18 s (CamVid), 11 s (people) and 65 s (raccoon) at the best of one core of an AMD EPYC
# virtual machine that others shared (2026-11-26); one of random weights takes up to a minute more, for BatchNorm.
set -u
[ $# -ge 4 ] || { sed -n '5,10s/^# \{0,1\}//p' "$0"; exit 2; }
DATA=$1 SIMCLR=$2 HAPICL=$3 OUT=$4
HAPICL_COMMAND=${HAPICL_COMMAND:-hapicl}
STARTS=(random "simclr=$SIMCLR" "hapicl_s=$HAPICL" --seeds 3)
[ $# -lt 5 ] || STARTS+=(--budget "$5")
code=0

$HAPICL_COMMAND compare segment "${STARTS[@]}" --out "$OUT/camvid" --fractions 0.05,0.25,1 \
    --images "$DATA/seg_camvid_trainval/train" --labels "$DATA/seg_camvid_trainval/trainannot" \
    --test-images "$DATA/seg_camvid_trainval/val" --test-labels "$DATA/seg_camvid_trainval/valannot" \
    --void 11 --classes 11 --set height=120 --set width=160 --set steps=400 --set batch_size=16 || code=$?

$HAPICL_COMMAND compare segment "${STARTS[@]}" --out "$OUT/people" --fractions 0.05,0.25,1 \
    --images "$DATA/fg_human/images" --labels "$DATA/fg_human/masks" --binary --classes 2 \
    --set height=96 --set width=96 --set steps=300 --set batch_size=16 || code=$?

$HAPICL_COMMAND compare detect "${STARTS[@]}" --out "$OUT/raccoon" --fractions 0.1,0.3,1 \
    --voc "$DATA/det_raccoon" --split train --test-split test --image-size 64 \
    --set shape.channels=32 --set shape.hidden=128 --set shape.regions=32 --set batch_size=4 \
    --set steps=120 --set warmup_steps=20 || code=$?
exit $code
