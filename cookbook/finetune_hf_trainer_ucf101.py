"""Fine-tunes on UCF-101 with the published recipe's flags; the work is in `front`.

python convert_ucf101.py --out_dir OUT
torchrun --nproc_per_node=4 finetune_hf_trainer_ucf101.py --data_dir OUT
"""

from front import Front, main

FRONT = Front(
    task="ucf101",
    num_crops=4,
    data_dir_required=True,
    flash_means_bf16=True,
    answers_by_id=True,
)

if __name__ == "__main__":
    main(FRONT)
