#!/bin/sh
# Does it learn, on real images, on two CPU cores? Trains one job, or goes on with it; each stops exactly where it was killed.
#
#   benchmarks/learning.sh JOB FOLDER      JOB: dino-imagenette, simclr-imagenette, dino-cifar10, simclr-cifar10
#
# Needs the image packs in $NOLABEL_DATA (default ../shared/data) and nolabel on the PATH. The results go to RESULTS.md.
set -eu
packs=${NOLABEL_DATA:-../shared/data}
job=$1
out=$2/$job
[ -d "$out" ] && exec nolabel resume "$out"
imagenette=$packs/imagenette224/imagenette224.zip
common="--subfolder train --out $out --workers 1 --threads 1 --seed 0 --precision bf16"
case $job in *-cifar10)
    cifar=$2/cifar10
    [ -d "$cifar" ] || python "$packs/cifar10/unpack.py" "$cifar"
    small='--backbone-args layers=[1,1,1,1] output_stride=8 channels=[32,64,128,256]' ;;
esac
case $job in
dino-imagenette)
    exec nolabel train dino-small "$imagenette" --labels "$imagenette" $common --backbone-args "layers=[1,1,1,1]" \
        --method.global-size 64 --method.local-size 32 --steps 6000 --eval-every 400 ;;
simclr-imagenette)
    exec nolabel train simclr-small "$imagenette" --labels "$imagenette" $common --backbone-args "layers=[1,1,1,1]" \
        --method.size 64 --steps 600 --eval-every 100 ;;
dino-cifar10)
    exec nolabel train dino-small "$cifar" --labels "$cifar" $common $small \
        --method.global-size 32 --method.local-size 16 --method.num-prototypes 2048 --steps 12000 --eval-every 1000 ;;
simclr-cifar10)
    exec nolabel train simclr-small "$cifar" --labels "$cifar" $common $small \
        --method.size 32 --steps 4000 --eval-every 400 ;;
*)
    echo "unknown job $job" >&2; exit 2 ;;
esac
