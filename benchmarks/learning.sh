#!/bin/sh
# Does it learn, on real images, on two CPU cores? Trains one job, or goes on with it; each stops exactly where it was killed.
#
#   benchmarks/learning.sh JOB FOLDER [SEED]
#   JOB: dino-imagenette, simclr-imagenette, dino-cifar10, simclr-cifar10, msn-cifar10, dino-vit-cifar10, densecl-scenes, mocov2-scenes
#
# Needs the image packs in $NOLABEL_DATA (default ../shared/data) and nolabel on the PATH. The results go to benchmarks/log.
set -eu
packs=${NOLABEL_DATA:-../shared/data}
job=$1
seed=${3:-0}
out=$2/$job-$seed
[ -d "$out" ] && exec nolabel resume "$out"
imagenette=$packs/imagenette224/imagenette224.zip
common="--subfolder train --out $out --workers 1 --threads 1 --seed $seed --precision bf16"
case $job in *-cifar10)
    cifar=$2/cifar10
    [ -d "$cifar" ] || python "$packs/cifar10/unpack.py" "$cifar" ;;
esac
resnet='--backbone-args layers=[1,1,1,1] output_stride=8 channels=[32,64,128,256]'
vit='--backbone vit_tiny_patch16_224 --backbone-args patch_size=8 embed_dim=128 depth=6 num_heads=4'
scenes=$packs/scenes150/scenes150.zip
case $job in
dino-imagenette)
    exec nolabel train dino-small "$imagenette" --labels "$imagenette" $common --backbone-args "layers=[1,1,1,1]" \
        --method.global-size 64 --method.local-size 32 --steps 6000 --eval-every 400 ;;
simclr-imagenette)
    exec nolabel train simclr-small "$imagenette" --labels "$imagenette" $common --backbone-args "layers=[1,1,1,1]" \
        --method.size 64 --steps 600 --eval-every 100 ;;
dino-cifar10)
    exec nolabel train dino-small "$cifar" --labels "$cifar" $common $resnet \
        --method.global-size 32 --method.local-size 16 --method.num-prototypes 2048 --steps 12000 --eval-every 1000 ;;
simclr-cifar10)
    exec nolabel train simclr-small "$cifar" --labels "$cifar" $common $resnet \
        --method.size 32 --steps 4000 --eval-every 400 ;;
msn-cifar10)
    exec nolabel train msn-small "$cifar" --labels "$cifar" $common $vit \
        --method.random-size 40 --method.focal-size 24 --method.num-prototypes 512 --batch-size 128 \
        --optim.lr 3e-3 --optim.warmup-epochs 0.5 --steps 3500 --eval-every 250 ;;
dino-vit-cifar10)
    exec nolabel train dino-small "$cifar" --labels "$cifar" $common $vit \
        --method.global-size 40 --method.local-size 24 --method.num-prototypes 2048 --batch-size 128 --steps 2000 --eval-every 250 ;;
densecl-scenes|mocov2-scenes)
    exec nolabel train ${job%-scenes}-small "$scenes" --labels "$scenes" $common $resnet \
        --method.size 64 --optim.lr 0.4 --steps 1000 --eval-every 250 ;;
*)
    echo "unknown job $job" >&2; exit 2 ;;
esac
