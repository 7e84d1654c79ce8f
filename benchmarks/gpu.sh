#!/bin/sh
# Every benchmark of speed in one command, on a machine with a GPU and no network: ceilings, the reference, then ours.
#
#   benchmarks/gpu.sh FOLDER [PART...]            # all parts, or those that are named
#   DEVICE=cpu TINY=1 benchmarks/gpu.sh FOLDER    # to see it run
#
# Needs nolabel's environment on the PATH. A part ends within ten minutes (it is cut there) and leaves FOLDER/PART.txt, some
# lines; one that failed leaves PART.log and does not stop the others. Parts that are there are skipped, so after a cut it
# is started again. Compiled code is kept in FOLDER/inductor. The figures go to benchmarks/log.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: benchmarks/gpu.sh FOLDER [PART...]}
shift
wanted=" $* "
device=${DEVICE:-cuda}
export PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$out/inductor}"
mkdir -p "$out"

part() { # part NAME COMMAND...
    name=$1
    shift
    [ "$wanted" = "  " ] || case $wanted in *" $name "*) ;; *) return ;; esac
    [ -e "$out/$name.txt" ] && return
    echo "$name: $*"
    if timeout 590 "$@" > "$out/$name.part" 2> "$out/$name.log"; then
        mv "$out/$name.part" "$out/$name.txt" && rm "$out/$name.log" && cat "$out/$name.txt"
    else
        echo "$name failed with exit code $?:" && tail -n 5 "$out/$name.log"
    fi
}

if [ -n "${TINY:-}" ]; then
    sizes='--tiny --rounds 1' large='--tiny --rounds 1' number=64
    short='--steps 4 --batch-size 4 --workers 1'
    vit='--backbone vit_tiny_patch16_224 --backbone-args depth=2'
    dino="$vit --method.global-size 32 --method.local-size 32 --method.num-local 2 --method.num-prototypes 64"
    msn="$vit --method.random-size 64 --method.focal-size 32 --method.num-focal 2 --method.num-prototypes 16"
    densecl='--backbone resnet18 --method.size 64 --method.queue-size 64'
    whole='--backbone vit_tiny_patch16_224 --batch 2 --global-size 32 --local-size 16 --prototypes 512 --rounds 1 --workers 1'
else
    sizes='--batch 64 --rounds 7' large='--batch 256 --rounds 5' number=8192
    short='--steps 100 --batch-size 256 --workers auto'
    dino='' msn='' densecl=''
    whole="--batch 256 --rounds 5 --steps 30 --workers $(($(nproc) - 1))"
fi

# Options are words without spaces, split on purpose.
# shellcheck disable=SC2086
{
    part ceilings python "$here/step.py" --ceilings --device "$device" $sizes
    part step python "$here/step.py" --device "$device" $sizes
    part step-large python "$here/step.py" --device "$device" $large --only step
    part step-keep-less python "$here/step.py" --device "$device" $large --only step --keep-less
    part memory python "$here/step.py" --device "$device" $large --batch 96 --only memory
    part memory-keep-less python "$here/step.py" --device "$device" $large --batch 96 --only memory --keep-less
    [ -n "${TINY:-}" ] || part step-compiled python "$here/step.py" --device "$device" $large --only step --compile
    part curves python "$here/step.py" --device "$device" $sizes --curves
    part photos python "$here/make_photos.py" "$out/photos" --number "$number"
    part end-to-end python "$here/end_to_end.py" "$out/photos" --device "$device" $whole
    part views python "$here/speed.py" --rounds 5
    for recipe in dino msn densecl; do
        eval "own=\$$recipe"
        for augment in cpu device; do
            run="python $here/short_run.py $recipe $out/photos $out/run --device $device --augment $augment $short"
            part "$recipe-$augment" $run $own
            [ -n "${TINY:-}" ] || part "$recipe-$augment-compiled" $run $own --compile
        done
    done
}
