"""Words for keys and word lists."""

ADJECTIVES = (
    "agile", "amber", "ample", "ancient", "arctic", "autumn", "azure", "balmy", "bold", "brave",
    "bright", "brisk", "bronze", "calm", "candid", "careful", "chilly", "civil", "clever", "cosmic",
    "coral", "crimson", "crisp", "curly", "dainty", "damp", "daring", "deep", "eager", "early",
    "earnest", "elder", "faint", "famous", "fearless", "fluent", "foggy", "fond", "frank", "frosty",
    "gentle", "gifted", "glossy", "golden", "grand", "hazel", "hollow", "honest", "humble",
    "indigo", "jolly", "keen", "kindly", "lively", "lofty", "loyal", "lunar", "mellow", "merry",
    "mighty", "misty", "modest", "narrow", "nimble", "noble", "odd", "patient", "plain", "polite",
    "quick", "rapid", "rare", "rustic", "sandy", "scarlet", "shy", "silent", "sleepy", "solar",
    "steady", "stormy", "sturdy", "sunny", "swift", "tender", "tidy", "tiny", "urban", "vivid",
    "witty",
)  # fmt: skip
NOUNS = (
    "acorn", "anchor", "apple", "arrow", "badger", "banner", "barley", "basin", "beacon", "beetle",
    "berry", "bishop", "bottle", "branch", "bridge", "bucket", "button", "cabin", "camel", "candle",
    "canyon", "carpet", "castle", "cedar", "cherry", "cliff", "clover", "comet", "copper", "cotton",
    "cradle", "cricket", "crystal", "desert", "dragon", "eagle", "ember", "falcon", "feather",
    "fiddle", "finger", "forest", "fountain", "garlic", "ginger", "glacier", "goblet", "hammer",
    "harvest", "helmet", "hornet", "island", "jacket", "jungle", "kernel", "kitten", "ladder",
    "lemon", "lizard", "magnet", "maple", "marble", "meadow", "mirror", "monkey", "mountain",
    "needle", "nutmeg", "ocean", "orange", "otter", "paddle", "panther", "pebble", "pepper",
    "pigeon", "pillow", "planet", "pocket", "puzzle", "rabbit", "raven", "ribbon", "rocket",
    "saddle", "salmon", "shadow", "shovel", "signal", "spider", "spruce", "statue", "summit",
    "temple", "thistle", "thunder", "tiger", "timber", "tulip", "tunnel", "turtle", "valley",
    "violin", "walnut", "whisper", "willow", "window", "winter", "wizard", "zebra",
)  # fmt: skip
