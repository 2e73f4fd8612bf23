# From raw downloads in $(RAW) to the files that the recipes name, in $(DATA_DIR); docs/data.md says where the downloads come from.
RAW ?= raw
DATA_DIR ?= data
PREPROCESS = $(BIN)/python -m data_preprocess
WORKERS ?= 0

.PHONY: data-research data-r1_searcher data-r1_searcher_pp data-search_r1 corpus-kilt corpus-wiki18 corpus-hotpotqa index

data-research: install ## MuSiQue for recipes/research, its paragraphs as a corpus beside it
	$(PREPROCESS) musique --contexts --out $(DATA_DIR)/musique --input train=$(RAW)/musique_ans_v1.0_train.jsonl --input dev=$(RAW)/musique_ans_v1.0_dev.jsonl

data-r1_searcher: install ## R1-Searcher's stages, and 500 questions of HotpotQA to validate on, for recipes/r1_searcher
	$(PREPROCESS) hotpotqa --out $(DATA_DIR)/r1_searcher --input dev=$(RAW)/hotpot_dev_fullwiki_v1.json --sample 500
	for stage in stage_1 stage_2; do $(PREPROCESS) r1_searcher --out $(DATA_DIR)/r1_searcher --split $$stage --input $(RAW)/$$stage.jsonl \
	  --exclude $(DATA_DIR)/r1_searcher/dev.jsonl || exit 1; done

data-r1_searcher_pp: data-r1_searcher ## the same questions for recipes/r1_searcher_pp, and questions to sample the cold start from
	$(PREPROCESS) r1_searcher --out $(DATA_DIR)/r1_searcher_pp --split train --input $(RAW)/stage_2.jsonl --exclude $(DATA_DIR)/r1_searcher/dev.jsonl
	$(PREPROCESS) flashrag --out $(DATA_DIR)/r1_searcher_pp --split dev --input $(DATA_DIR)/r1_searcher/dev.jsonl
	$(PREPROCESS) hotpotqa --out $(DATA_DIR)/r1_searcher_pp --split cold_start --input $(RAW)/hotpot_train_v1.1.json --sample 2000 \
	  --exclude $(DATA_DIR)/r1_searcher_pp/train.jsonl $(DATA_DIR)/r1_searcher_pp/dev.jsonl

data-search_r1: install ## NQ and HotpotQA, whole, for recipes/search_r1
	$(PREPROCESS) nq --out $(DATA_DIR)/search_r1/nq --input train=$(RAW)/NQ-open.train.jsonl --input test=$(RAW)/NQ-open.dev.jsonl
	$(PREPROCESS) hotpotqa --out $(DATA_DIR)/search_r1/hotpotqa --input train=$(RAW)/hotpot_train_v1.1.json --input test=$(RAW)/hotpot_dev_fullwiki_v1.json
	for split in train test; do $(PREPROCESS) mix --out $(DATA_DIR)/search_r1 --split $$split --part $(DATA_DIR)/search_r1/nq/$$split.jsonl \
	  --part $(DATA_DIR)/search_r1/hotpotqa/$$split.jsonl || exit 1; done

corpus-kilt: install ## Wikipedia of August 2019 in passages of 100 words (R1-Searcher): 29 million
	$(PREPROCESS) corpus --format kilt --input $(RAW)/kilt_knowledgesource.json --out $(DATA_DIR)/kilt/passages.jsonl --workers $(WORKERS)

corpus-wiki18: install ## DPR's passages of December 2018 (ReSearch, Search-R1): 21 million
	$(PREPROCESS) corpus --format dpr --input $(RAW)/psgs_w100.tsv.gz --out $(DATA_DIR)/wiki18/passages.jsonl --workers $(WORKERS)

corpus-hotpotqa: install ## the abstracts of October 2017 that HotpotQA was made of: 5 million
	$(PREPROCESS) corpus --format hotpotqa --by keep --input $(RAW)/enwiki-20171001-pages-meta-current-withlinks-abstracts.tar.bz2 \
	  --out $(DATA_DIR)/hotpotqa_abstracts/passages.jsonl --workers $(WORKERS)

CORPUS ?= kilt
index: install ## BM25 index of CORPUS=kilt|wiki18|hotpotqa_abstracts|musique (a dense one: docs/serving.md)
	$(BIN)/rag-serving index --corpus $(DATA_DIR)/$(CORPUS)/passages.jsonl --out $(DATA_DIR)/$(CORPUS)/bm25
