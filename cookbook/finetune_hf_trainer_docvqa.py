"""Fine-tunes on DocVQA with the published recipe's flags; the work is in `front`.

    torchrun --nproc_per_node=4 finetune_hf_trainer_docvqa.py

`--data_dir`: a folder with the Parquet files of nielsr/docvqa_1200_examples, or one that holds
`nielsr/docvqa_1200_examples` and, for --full_train, `HuggingFaceM4/the_cauldron/docvqa`.
"""

from front import Front, main

FRONT = Front(
    task="docvqa",
    metric="anls",
    title="Average normalized Levenshtein similarity",
    mini_train=True,
)

if __name__ == "__main__":
    main(FRONT)
