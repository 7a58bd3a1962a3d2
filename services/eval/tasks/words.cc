#include "services/eval/tasks/words.h"

#include <array>
#include <string_view>

namespace infllm::services {
namespace {

// Plain English, in alphabetical order, no word in both lists. Samples are drawn by place: a change
// here changes every sample.
// clang-format off
constexpr std::array<std::string_view, 385> kAdjectives = {
    "able", "absent", "ample", "ancient", "angry", "anxious", "apt", "awake", "aware", "bald",
    "bare", "basic", "big", "bitter", "black", "blank", "bleak", "blind", "blond", "blue", "blunt",
    "bold", "bored", "bossy", "bouncy", "brainy", "brave", "brief", "bright", "brisk", "broad",
    "broken", "brown", "bulky", "bumpy", "busy", "calm", "careful", "caring", "casual", "cautious",
    "central", "charming", "cheap", "cheerful", "chilly", "chubby", "civil", "classic", "clean",
    "clear", "clever", "cloudy", "clumsy", "coarse", "cold", "common", "compact", "complete",
    "cool", "cordial", "costly", "cosy", "crafty", "crazy", "creamy", "crisp", "crooked", "crowded",
    "cruel", "curious", "curly", "cute", "daily", "damp", "dapper", "daring", "dark", "dazzling",
    "dear", "decent", "deep", "defiant", "delicate", "dense", "dim", "direct", "distant", "dizzy",
    "domestic", "double", "drab", "dreamy", "dry", "dual", "dull", "dusty", "eager", "early",
    "earnest", "easy", "elastic", "elderly", "elegant", "eminent", "empty", "endless", "enormous",
    "equal", "eternal", "even", "exact", "exotic", "extra", "faint", "fair", "faithful", "false",
    "familiar", "famous", "fancy", "fast", "faulty", "fearless", "festive", "fierce", "final",
    "fine", "firm", "fit", "flaky", "flat", "flawless", "fluffy", "fond", "foolish", "formal",
    "frail", "frank", "free", "frequent", "fresh", "friendly", "frosty", "frozen", "frugal", "full",
    "funny", "fussy", "fuzzy", "gaudy", "generous", "gentle", "gifted", "glad", "gloomy", "glossy",
    "golden", "good", "gorgeous", "graceful", "grand", "grateful", "grave", "gray", "greedy",
    "green", "grim", "grumpy", "handy", "happy", "hardy", "harsh", "hasty", "hearty", "heavy",
    "helpful", "hollow", "holy", "honest", "hopeful", "hot", "huge", "humble", "hungry", "husky",
    "icy", "ideal", "idle", "immense", "jolly", "jovial", "joyful", "keen", "kind", "large", "late",
    "lavish", "lazy", "lean", "legal", "light", "likely", "limp", "liquid", "lively", "local",
    "lone", "lonely", "long", "loose", "lost", "loud", "lovely", "low", "loyal", "lucky", "mature",
    "meek", "mellow", "merry", "messy", "mighty", "mild", "minor", "misty", "modern", "modest",
    "moist", "muddy", "murky", "mute", "narrow", "neat", "new", "nimble", "noble", "noisy",
    "normal", "numb", "obedient", "odd", "old", "open", "ornate", "oval", "pale", "patient",
    "perfect", "pink", "plain", "pleasant", "plump", "polite", "poor", "precious", "pretty",
    "prickly", "prime", "private", "prompt", "proper", "proud", "public", "puny", "pure", "purple",
    "quaint", "quick", "quiet", "rapid", "rare", "raw", "ready", "real", "red", "regal", "remote",
    "rich", "rigid", "ripe", "robust", "rocky", "rosy", "rough", "round", "royal", "rude", "rural",
    "rusty", "sacred", "sad", "safe", "salty", "sandy", "scarce", "secret", "serene", "shallow",
    "sharp", "shiny", "shy", "silent", "silky", "silly", "simple", "sincere", "sleepy", "slender",
    "slim", "slow", "sly", "small", "smart", "smooth", "snug", "sober", "soft", "solid", "sour",
    "spare", "sparkling", "spicy", "square", "stable", "steady", "steep", "stern", "sticky",
    "stiff", "stormy", "strange", "strict", "strong", "sturdy", "subtle", "sudden", "sunny",
    "super", "sweet", "swift", "tall", "tame", "tangy", "tart", "tasty", "tender", "tense", "thick",
    "thin", "thirsty", "thorny", "tidy", "tight", "timid", "tiny", "tough", "tranquil", "trusty",
    "unique", "urban", "useful", "vague", "vain", "vast", "velvet", "vivid", "warm", "wary", "weak",
    "wealthy", "weary", "weird", "wet", "white", "whole", "wide", "wild", "wise", "witty", "wooden",
    "woolly", "worthy", "young", "zealous"};

constexpr std::array<std::string_view, 375> kNouns = {
    "acorn", "actor", "album", "almond", "anchor", "angle", "ankle", "apple", "apron", "arch",
    "armor", "arrow", "artist", "atlas", "attic", "aunt", "autumn", "axle", "badge", "bagel",
    "baker", "balcony", "balloon", "bamboo", "banana", "banjo", "banner", "barber", "barn",
    "barrel", "basin", "basket", "beach", "beacon", "bead", "bean", "bear", "beaver", "bell",
    "belt", "bench", "berry", "bird", "biscuit", "blanket", "blossom", "boat", "bonnet", "book",
    "border", "bottle", "boulder", "bowl", "box", "branch", "bread", "breeze", "brick", "bridge",
    "broom", "brush", "bucket", "buckle", "buffalo", "bugle", "bush", "butter", "button", "cabin",
    "cabinet", "cable", "cactus", "camel", "camera", "canal", "candle", "candy", "canoe", "canyon",
    "captain", "caravan", "cargo", "carpet", "carrot", "cart", "castle", "cattle", "cave", "cedar",
    "ceiling", "cellar", "chain", "chair", "chalk", "channel", "chapel", "cherry", "chest",
    "chimney", "church", "cinema", "circle", "circus", "clock", "cloth", "cloud", "clover", "coach",
    "coast", "coat", "cobweb", "coconut", "coffee", "collar", "column", "comet", "compass",
    "copper", "coral", "corner", "cottage", "cotton", "cousin", "cradle", "crane", "crater",
    "crayon", "creek", "cricket", "crown", "crystal", "cupboard", "curtain", "cushion", "dagger",
    "daisy", "dancer", "dawn", "deer", "desert", "desk", "dial", "diamond", "dinner", "dolphin",
    "donkey", "door", "dragon", "drawer", "dress", "drum", "duck", "eagle", "earth", "easel",
    "elbow", "elephant", "elm", "ember", "engine", "envelope", "falcon", "farmer", "feather",
    "fence", "fern", "ferry", "fiddle", "field", "finger", "flag", "flame", "flower", "flute",
    "forest", "fork", "fossil", "fountain", "fox", "frame", "frog", "garden", "garlic", "gate",
    "ghost", "giant", "ginger", "giraffe", "glacier", "glass", "globe", "glove", "goat", "goose",
    "grain", "grape", "grass", "gravel", "guitar", "hammer", "hammock", "harbor", "harp", "hat",
    "hawk", "hazel", "hedge", "helmet", "herb", "hermit", "hill", "honey", "hook", "horizon",
    "horse", "hotel", "house", "igloo", "insect", "iron", "island", "ivory", "ivy", "jacket", "jar",
    "jelly", "jewel", "jungle", "kettle", "key", "kitchen", "kite", "kitten", "knight", "ladder",
    "lagoon", "lake", "lamb", "lamp", "lantern", "leaf", "lemon", "letter", "library", "lily",
    "lion", "lizard", "lobster", "locket", "lumber", "magnet", "maple", "marble", "market",
    "meadow", "medal", "melon", "mirror", "mitten", "monkey", "moon", "moss", "mountain", "museum",
    "mushroom", "napkin", "necklace", "needle", "nest", "nickel", "oak", "oasis", "ocean", "olive",
    "onion", "orchard", "organ", "otter", "oven", "owl", "oyster", "paddle", "painter", "palace",
    "panther", "paper", "parrot", "pasture", "peach", "peacock", "pear", "pebble", "pencil",
    "pepper", "piano", "picnic", "pigeon", "pillow", "pilot", "pine", "planet", "plate", "plum",
    "pocket", "pond", "poppy", "potato", "prairie", "pumpkin", "puppet", "quilt", "rabbit",
    "radish", "raft", "rainbow", "raven", "ribbon", "river", "robin", "rocket", "roof", "rose",
    "sailor", "salmon", "sandal", "saucer", "scarf", "school", "seal", "shadow", "shed", "shell",
    "ship", "shore", "singer", "sister", "sleeve", "snail", "soldier", "sparrow", "spider", "spoon",
    "squirrel", "star", "statue", "stove", "stream", "sugar", "summer", "swan", "table", "teacher",
    "temple", "thimble", "thunder", "ticket", "tiger", "timber", "tower", "trumpet", "tulip",
    "tunnel", "turtle", "uncle", "valley", "vase", "village", "violin", "wagon", "walnut", "window",
    "winter", "wolf", "yard", "zebra"};
// clang-format on

}  // namespace

std::span<const std::string_view> Adjectives() { return kAdjectives; }
std::span<const std::string_view> Nouns() { return kNouns; }

}  // namespace infllm::services
