#!/usr/bin/env bash
# docling-core writes a table into DocTags that it cannot read back: the first "<" in a cell ends the rows.
#
# Guessed:  a document written by export_to_doctags and read by load_from_doctags has the same tables and formulas.
# Happens:  a table of three rows with "< 5" in a cell comes back in two: the row behind it has joined its row, as
#           further columns, and the cell says "< 5 mg<nl>". The formula "a<b" comes back as "a". Nothing is said.
# Why:      docling_core/types/doc/document.py and utils.py: export writes text as it is; otsl_extract_tokens_and_text
#           takes everything from "<" to the next ">" for one token, here "< 5 mg<nl>", and extract_inner_text drops what
#           looks like a tag.
# Matters:  DocTags is what SmolDocling and Granite-Docling are taught to write: tables of laboratory values, tolerances and
#           prices ("< 5", "p<0.01") are scored, and converted, as other tables than the model wrote.
# Versions: docling-core 2.104.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" docling-core==2.104.0 pillow==13.0.0

python - <<'PYTHON'
import sys

from docling_core.types.doc import DoclingDocument, TableCell, TableData
from docling_core.types.doc.document import DocTagsDocument
from PIL import Image


def there_and_back(rows, formula):
    document = DoclingDocument(name="written")
    cells = [
        TableCell(text=text, start_row_offset_idx=r, end_row_offset_idx=r + 1, start_col_offset_idx=c, end_col_offset_idx=c + 1)
        for r, row in enumerate(rows)
        for c, text in enumerate(row)
    ]
    document.add_table(TableData(table_cells=cells, num_rows=len(rows), num_cols=len(rows[0])))
    document.add_formula(formula)
    tags = document.export_to_doctags()
    pages = DocTagsDocument.from_doctags_and_image_pairs([tags], [Image.new("RGB", (64, 64))])
    read = DoclingDocument.load_from_doctags(pages, document_name="read")
    grid = [[cell.text for cell in row] for row in read.tables[0].data.grid]
    return tags, grid, read.texts[-1].text


ROWS = [["what", "value"], ["lead", "5 mg"], ["zinc", "7 mg"]]
SIGNS = [["what", "value"], ["lead", "< 5 mg"], ["zinc", "7 mg"]]
plain = there_and_back(ROWS, "a=b")
signs = there_and_back(SIGNS, "a<b")
for tags, grid, formula in (plain, signs):
    print(tags, f"table read: {grid}", f"formula read: {formula!r}", sep="\n")
sys.exit(plain[1:] != (ROWS, "a=b") or signs[1:] != ([["what", "value", "", ""], ["lead", "< 5 mg<nl>", "zinc", "7 mg"]], "a"))
PYTHON
