#!/usr/bin/env bash
# Pre-train on data/pre_train where it exists; otherwise on the embedded sample, and go on to fine-tuning and a table.
# Further arguments go to pre_train.py, for example: bash run.sh --max_steps 200, or bash run.sh --resume. A --config of
# yours takes the place of the one that is named here.
set -euo pipefail
cd "$(dirname "$0")"

# Whether the arguments after the first go on with an earlier run, which has settings of its own; with auto, where the
# folder of the checkpoints, --ckpt_dir or the first argument, has something to go on with.
goes_on() {
    local folder="$1" resume
    while shift && [ $# -gt 0 ]; do
        case "$1" in
            --ckpt_dir) folder="${2:-}" ;;
            --ckpt_dir=*) folder="${1#*=}" ;;
            --resume) resume="${2:-}" ;;
            --resume=*) resume="${1#*=}" ;;
        esac
    done
    [ -n "${resume+given}" ] && { [ "$resume" != auto ] || compgen -G "$folder/*.resume" >/dev/null; }
}

pre_train() {
    local processes
    processes="$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')"
    # Said out loud because accelerate's own default is one thread per process.
    accelerate launch --quiet --num_processes "$processes" --num_cpu_threads_per_process "$(( ($(nproc) + processes - 1) / processes ))" \
        --num_machines 1 --mixed_precision no --dynamo_backend no pre_train.py "$@"
}

sample() {
    local raw=data/sample built=data/sample/built domain settings=(--config configs/sample.toml)
    local tokenizer="$built/vae_ckpt/vae_len4_fsq88865_ep30.pt" again=()
    if goes_on "$built/ckpt" "$@"; then settings=(); else rm -rf "$built"; fi
    [ ! -e "$built/vae_ckpt/vae_len4_fsq88865.resume" ] || again=(--resume)

    echo "== data sets of the sample"
    for domain in toys kitchen beauty outdoor crafts pets; do
        python data_processing/make_dataset.py --input "$raw/$domain" --embeddings "$raw/$domain/embeddings.npy" \
            --output "$built/$domain" --test_share "$([ "$domain" = pets ] && echo 0.5 || echo 0.1)"
    done
    local domains=("$built"/{toys,kitchen,beauty,outdoor})

    echo "== tokenizer"
    python ae_trainer.py --embeddings "${domains[@]/%//item_text_embeddings.npy}" --output "$built/vae_ckpt" \
        --epoch 31 --lr 1e-3 --init_deviation 0.3 "${again[@]}"

    echo "== data for pre-training and for choosing a checkpoint"
    python data_processing/data_process_2.py --datasets "${domains[@]}" --output "$built/pre_train"
    python data_processing/pre_train_data_process.py --datasets "${domains[@]}" --output "$built/pre_train"
    python data_processing/make_token_list.py --embeddings "$built/pre_train/all_item_text_embeddings.npy" \
        --vae_ckpt "$tokenizer" --output "$built/pre_train/token_id_list.pkl"
    python data_processing/make_eval.py --datasets "$built/crafts" --users 400 --vae_ckpt "$tokenizer" \
        --output "$built/eval"

    echo "== pre-training"
    pre_train --data_path "$built/pre_train" --ckpt_dir "$built/ckpt" --log_file logs/sample.jsonl \
        "${settings[@]}" "$@"

    echo "== choosing a checkpoint on crafts"
    python eval.py --data_path "$built/eval" --ckpt_path "$built/ckpt" | tee "$built/eval.txt"
    local best
    best="$(sed -n 's/^best: //p' "$built/eval.txt")"

    echo "== prediction on pets"
    echo "== cold start: users with one to three items"
    python predict.py --dataset "$built/pets" --vae_ckpt "$tokenizer" --ckpt_path "$best" --cold True
    echo "== zero-shot: all users"
    python predict.py --dataset "$built/pets" --vae_ckpt "$tokenizer" --ckpt_path "$best" \
        --output "$built/zero_shot.jsonl"

    echo "== fine-tuning on the log of pets"
    python data_processing/make_pre_train.py --datasets "$built/pets" --vae_ckpt "$tokenizer" --output "$built/pets_log"
    rm -rf "$built/fine_tuned"
    pre_train --init_from "$best" --data_path "$built/pets_log" --eval_path "$built/pets_log/eval" --save_last \
        --batch_size 40 --epoch 12 --lr 2e-3 --eval_every 15 --best_by ndcg --patience 4 --ckpt_dir "$built/fine_tuned" \
        --log_file logs/fine_tuned.jsonl

    echo "== all of them on pets: RecGPT is fine-tuned, RecGPT zero-shot was trained on other domains only"
    python predict.py --dataset "$built/pets" --vae_ckpt "$tokenizer" --ckpt_path "$built/fine_tuned/layer_3_best.pt" \
        --blend --compare "RecGPT zero-shot=$built/zero_shot.jsonl"
}

main() {
    set -e
    trap 'exit 143' TERM # a step that heeds the notice ends well: do not take the next
    source utils/venv.sh requirements.txt
    if [ -d data/pre_train ]; then
        local settings=(--config configs/paper.toml)
        if goes_on ckpt "$@"; then settings=(); fi
        pre_train "${settings[@]}" "$@"
    else
        echo "data/pre_train is not there: using the embedded sample (data/sample)"
        sample "$@"
    fi
}

mkdir -p logs
log="logs/run_$(date +%Y%m%d_%H%M%S).log"
set +e -m # -m: the work is a process group of its own, in which a notice reaches everyone; tee reads to the end
(main "$@") 2>&1 | (trap '' HUP INT TERM; exec tee "$log") &
told=""
trap 'kill -TERM %1' HUP TERM # at which pre_train.py writes a checkpoint
trap 'told=130; kill -TERM %1' INT # the same at Ctrl-C, at which accelerate would show a traceback
wait %1
status=$?
while [ -n "$(jobs -pr)" ]; do # a signal ends `wait`, not the work
    wait %1
    status=$?
done
[ "$status" -eq 0 ] || status="${told:-$status}"
[ "$status" -eq 0 ] || echo "run.sh ended with exit code $status; see $log" >&2
exit "$status"
