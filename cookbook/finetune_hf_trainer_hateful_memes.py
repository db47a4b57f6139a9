"""Fine-tunes on Hateful Memes with the published recipe's flags; the work is in `front`.

    torchrun --nproc_per_node=8 finetune_hf_trainer_hateful_memes.py --batch_size 64 --bf16

`--data_dir`: a folder with the Parquet files of HuggingFaceM4/the_cauldron, part hateful_memes.
"""

from front import Front, main

FRONT = Front(
    task="hateful_memes",
)

if __name__ == "__main__":
    main(FRONT)
