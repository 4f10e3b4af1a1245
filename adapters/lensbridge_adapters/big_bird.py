"""BigBird with full attention: BERT's layers. Block-sparse attention has no pattern to read."""

from dataclasses import replace

from lensbridge_adapters.bert import BERT

BIG_BIRD = replace(
    BERT,
    name="big_bird",
    classes=(
        "BigBirdForMaskedLM",
        "BigBirdForPreTraining",
        "BigBirdForCausalLM",
        "BigBirdForSequenceClassification",
        "BigBirdForTokenClassification",
        "BigBirdForMultipleChoice",
        "BigBirdModel",
    ),
    requires={"attention_type": "original_full"},
    pooler="bert.activation",
    unembed=("cls.predictions.decoder", "classifier.out_proj", "classifier"),
)

ARCHITECTURES = (BIG_BIRD,)
