"""The words of the embedded sample: domains, categories, themes and brands, all invented. Data only."""

from typing import NamedTuple


class Category(NamedTuple):
    """One shelf of a domain: what is sold on it, what goes with it, and what is used up and bought again."""

    name: str
    mains: tuple[str, ...]
    extras: tuple[str, ...]
    refills: tuple[str, ...] = ()
    series: tuple[str, str] | None = None  # title and the word for one part, e.g. ("Castle Brackenhold", "Set")


class Domain(NamedTuple):
    """One catalog. Categories stand in an order in which neighbours complement each other."""

    role: str
    department: str
    repeat_rate: float  # chance per purchase that something used up is bought again
    audiences: tuple[str, ...]
    qualities: tuple[str, ...]
    sections: dict[str, tuple[Category, ...]]


# Theme -> words for a title, and a phrase for a description. The same themes run through every domain.
THEMES = {
    "space": (("Galaxy", "Starlight", "Comet", "Moon Rocket"), "planets, rockets and a sky full of stars"),
    "ocean": (("Deep Sea", "Coral Reef", "Blue Whale", "High Tide"), "waves, whales and coral reefs"),
    "forest": (("Woodland", "Fox Hollow", "Fern Path", "Old Oak"), "foxes, ferns and mossy woods"),
    "vintage": (("Vintage", "Retro Diner", "Heirloom", "Grandma's Attic"), "the look of things made a century ago"),
    "dragon": (("Dragon Fire", "Knight's Keep", "Wizard Tower", "Griffin"), "dragons, castles and old magic"),
    "desert": (("Desert Sun", "Cactus", "Red Canyon", "Sand Dune"), "warm sand, cacti and red canyons"),
    "meadow": (("Wildflower", "Honey Bee", "Lavender Field", "Daisy Chain"), "bees, daisies and summer meadows"),
    "winter": (("Snowflake", "Polar Bear", "Frosty Pine", "Ice Lake"), "snow, ice and northern lights"),
    "orchard": (("Lemon Grove", "Peach Orchard", "Wild Berry", "Cherry Pie"), "ripe fruit straight from the orchard"),
    "geometric": (("Nordic Line", "Triangle", "Pure Grid", "Monochrome"), "clean lines and shapes in black and white"),
    "eco": (("Green Leaf", "Zero Waste", "Recycled", "Earth Kind"), "recycled materials and no plastic wrapping"),
    "carnival": (("Carnival", "Rainbow", "Circus Parade", "Paper Lantern"), "bright colours, lanterns and music"),
}

BRANDS = {
    "everywhere": ("Brindlemoor", "Pennywhisk", "Oakumber", "Tindlefox"),
    "toys": ("Wobblegate", "Jollybarrow", "Tuckerpip", "Marblewick", "Snickerdale"),
    "kitchen": ("Ladlemere", "Crumbleford", "Saucerby", "Emberpan", "Thymewell"),
    "beauty": ("Velvemoor", "Dewlarke", "Rosalinth", "Petalquay", "Lumivelle"),
    "outdoor": ("Cragfallow", "Trailmarrow", "Hollowpeak", "Windlestone", "Farrowridge"),
    "crafts": ("Threadlark", "Inkwillow", "Quillbarrow", "Loomfield Lane", "Paperhythe"),
    "pets": ("Waggleton", "Purrbrook", "Snufflemere", "Featherby", "Burrowgood"),
}

EDITIONS = (
    "Gift Edition",
    "Travel Size",
    "Family Size",
    "Classic",
    "Small",
    "Large",
    "Limited Edition",
    "Anniversary Box",
)
PACKS = ("pack of 2", "pack of 3", "pack of 6", "family pack", "large box", "value pack")

# For each role in a product line. `product` is the line's first main product, which the extras go with.
TITLES = {
    "main": ("{word} {noun}", "{brand} {word} {noun}", "{word} {noun}, {edition}", "{noun} by {brand}, {word}"),
    "extra": ("{noun} for {word} {product}", "{word} {noun}, fits {product}"),
    "refill": ("{word} {noun}, {pack}", "{brand} {noun}, {word}, {pack}"),
}
DESCRIPTIONS = {
    "main": (
        "{category} for {audience}, {quality}. Inspired by {phrase}.",
        "Our {noun} brings {phrase} to your home. {quality}.",
        "Made with {audience} in mind, {quality}. Part of the {word} range.",
    ),
    "extra": (
        "Made to go with the {word} {product} by {brand}. {quality}.",
        "Gets more out of your {product}. {quality}, for {audience}.",
    ),
    "refill": (
        "Never run out: {noun} for {audience}. From the {word} range by {brand}.",
        "Reminds you of {phrase}. {quality}, in a {pack}.",
    ),
}
PART_TITLE = "{series}, {unit} {part}: {subtitle}"
PART_DESCRIPTION = "{unit} {part} of {parts} in the series {series}, with {phrase}."

SUBTITLES = (
    "The Hidden Bridge",
    "The Silver Bell",
    "The Long Road",
    "The Quiet Harbour",
    "The Lost Map",
    "The Tower Clock",
    "The Old Mill",
    "The Northern Gate",
    "The Glass Garden",
    "The Last Lantern",
    "The Copper Key",
    "The Painted Door",
)

DOMAINS = {
    "toys": Domain(
        role="pre-training",
        department="Toys",
        repeat_rate=0.15,
        audiences=("toddlers", "ages 3 to 5", "ages 6 to 9", "ages 10 and up", "the whole family"),
        qualities=(
            "tested by children",
            "easy to put away",
            "safe from the first birthday on",
            "made to be handed down",
        ),
        sections={
            "Building": (
                Category(
                    "Brick Sets",
                    ("Brick Castle", "Brick Harbour", "Brick Space Station", "Brick Farm"),
                    ("Base Plate", "Minifigure Crew", "Light Kit"),
                    series=("Castle Brackenhold", "Set"),
                ),
                Category(
                    "Marble Runs",
                    ("Marble Run", "Marble Tower", "Wooden Marble Track"),
                    ("Bridge and Loop Pack", "Glass Marble Bag"),
                ),
                Category(
                    "Toy Trains",
                    ("Wooden Train", "Freight Train", "Night Express Train", "Tram"),
                    ("Curved Track Pack", "Station House", "Tunnel"),
                    series=("Little Valley Railway", "Wagon"),
                ),
            ),
            "Pretend Play": (
                Category(
                    "Play Vehicles",
                    ("Fire Engine", "Digger", "Rescue Boat", "Tow Truck"),
                    ("Driver Figure", "Garage Ramp"),
                ),
                Category(
                    "Figures",
                    ("Hero Figure", "Animal Figure Set", "Explorer Figure"),
                    ("Figure Stand", "Adventure Playset", "Costume Pack"),
                    series=("Guardians of Emberfell", "Figure"),
                ),
                Category(
                    "Dolls",
                    ("Rag Doll", "Baby Doll", "Fashion Doll"),
                    ("Doll Wardrobe", "Doll Pram", "Doll Bedding"),
                ),
                Category(
                    "Doll Houses",
                    ("Doll House", "Tree House", "Caravan for Dolls"),
                    ("Kitchen Furniture Set", "Garden Furniture Set"),
                ),
                Category(
                    "Soft Toys",
                    ("Plush Bear", "Plush Rabbit", "Cuddly Elephant", "Plush Sloth"),
                    ("Tiny Scarf and Hat", "Sleeping Basket"),
                    series=("Sleepy Friends", "Plush"),
                ),
            ),
            "Games and Puzzles": (
                Category(
                    "Jigsaw Puzzles",
                    ("100 Piece Jigsaw", "500 Piece Jigsaw", "Floor Puzzle"),
                    ("Puzzle Mat", "Sorting Trays"),
                    series=("Around the World Panorama", "Puzzle"),
                ),
                Category(
                    "Board Games",
                    ("Race Board Game", "Memory Game", "Strategy Board Game", "Story Dice Game"),
                    ("Expansion", "Wooden Token Set"),
                ),
                Category(
                    "Trading Cards",
                    ("Card Starter Deck", "Duel Deck", "Card Battle Box"),
                    ("Card Album", "Play Mat"),
                    ("Booster Packet", "Card Sleeves"),
                ),
            ),
            "Creative Play": (
                Category(
                    "Modelling Dough",
                    ("Dough Bakery", "Dough Zoo", "Clay Studio"),
                    ("Roller and Cutter Set", "Dough Press"),
                    ("Dough Refill Tubs", "Clay Refill Blocks"),
                ),
                Category(
                    "Drawing Boards",
                    ("Magnetic Drawing Board", "Easel", "Scratch Art Set"),
                    ("Stamp Set", "Travel Case"),
                    ("Chalk Sticks", "Washable Felt Pens"),
                ),
                Category(
                    "Bath Toys",
                    ("Bath Boat", "Bath Squirter Set", "Waterfall Bath Wheel"),
                    ("Bath Toy Net", "Foam Letters"),
                    ("Bath Crayons", "Bubble Bath"),
                ),
            ),
        },
    ),
    "kitchen": Domain(
        role="pre-training",
        department="Kitchen and Dining",
        repeat_rate=0.33,
        audiences=("small kitchens", "big families", "beginners", "weekend cooks", "students"),
        qualities=("tested by cooks", "takes up little room", "made to last", "a favourite of our customers"),
        sections={
            "Cooking": (
                Category(
                    "Frying Pans",
                    ("Frying Pan", "Cast Iron Skillet", "Wok", "Pancake Pan"),
                    ("Glass Lid", "Pan Protector", "Silicone Spatula"),
                    ("Seasoning Oil",),
                ),
                Category(
                    "Pots",
                    ("Stock Pot", "Saucepan", "Casserole Dish", "Steamer Pot"),
                    ("Steamer Insert", "Pot Holder Pair", "Trivet"),
                ),
                Category(
                    "Knives",
                    ("Chef's Knife", "Bread Knife", "Paring Knife Set", "Santoku Knife"),
                    ("Knife Block", "Sharpening Stone", "Blade Guard"),
                ),
                Category(
                    "Cutting Boards",
                    ("Cutting Board", "Carving Board", "Chopping Mat Set"),
                    ("Board Stand", "Juice Tray"),
                    ("Board Oil",),
                ),
                Category(
                    "Spices",
                    ("Spice Gift Box", "Curry Kit", "Grill Rub Collection"),
                    ("Spice Rack", "Pepper Mill", "Mortar and Pestle"),
                    ("Spice Refill Pouch", "Sea Salt Flakes"),
                    series=("A Pinch of Everywhere", "Spice Box"),
                ),
                Category(
                    "Cookbooks",
                    ("Soup Cookbook", "Vegetable Cookbook", "Baking Cookbook", "One Pot Cookbook"),
                    ("Cookbook Stand", "Recipe Cards"),
                    series=("The Slow Supper Almanac", "Volume"),
                ),
            ),
            "Baking": (
                Category(
                    "Bakeware",
                    ("Cake Tin", "Muffin Tray", "Loaf Tin", "Pie Dish"),
                    ("Cooling Rack", "Cake Carrier"),
                    ("Baking Paper", "Muffin Cases"),
                ),
                Category(
                    "Bread Baking",
                    ("Proofing Basket", "Sourdough Kit", "Pizza Stone"),
                    ("Dough Scraper", "Linen Cover", "Scoring Blade"),
                    ("Bread Flour Blend", "Dry Yeast"),
                    series=("Hearth and Crust School", "Lesson Kit"),
                ),
            ),
            "Drinks": (
                Category(
                    "Coffee Makers",
                    ("French Press", "Pour Over Dripper", "Moka Pot", "Cold Brew Jug"),
                    ("Milk Frother", "Hand Grinder", "Dosing Scoop"),
                    ("Coffee Beans", "Paper Filters"),
                    series=("Roaster's Journey", "Coffee Box"),
                ),
                Category(
                    "Tea",
                    ("Teapot", "Tea Infuser Mug", "Matcha Set"),
                    ("Tea Cosy", "Honey Spoon", "Tea Tin"),
                    ("Loose Leaf Tea", "Herbal Tea Bags"),
                ),
                Category(
                    "Mugs",
                    ("Stoneware Mug", "Espresso Cup Set", "Travel Mug", "Enamel Mug"),
                    ("Saucer Set", "Mug Tree"),
                    series=("Twelve Moons", "Mug"),
                ),
            ),
            "Table and Storage": (
                Category(
                    "Table Linen",
                    ("Tablecloth", "Table Runner", "Apron", "Tea Towel Trio"),
                    ("Napkin Rings", "Matching Napkins"),
                ),
                Category(
                    "Food Storage",
                    ("Glass Jar Set", "Bread Bin", "Lunch Box", "Fermenting Crock"),
                    ("Jar Labels", "Spare Lids"),
                    ("Beeswax Wraps", "Freezer Bags"),
                ),
                Category(
                    "Washing Up",
                    ("Dish Rack", "Dish Brush", "Soap Dispenser"),
                    ("Drip Tray", "Brush Holder"),
                    ("Dish Soap Refill", "Sponge Cloths"),
                ),
            ),
        },
    ),
    "beauty": Domain(
        role="pre-training",
        department="Beauty and Care",
        repeat_rate=0.32,
        audiences=("dry skin", "sensitive skin", "oily skin", "mature skin", "the whole family"),
        qualities=("vegan", "fragrance free", "dermatologist tested", "kind to sensitive skin"),
        sections={
            "Skin Care": (
                Category(
                    "Cleansers",
                    ("Foaming Cleanser", "Cleansing Balm", "Micellar Water", "Clay Cleanser"),
                    ("Cleansing Brush", "Muslin Cloths"),
                    ("Cleanser Refill", "Cotton Pads"),
                ),
                Category(
                    "Serums",
                    ("Vitamin Serum", "Night Serum", "Hydrating Serum"),
                    ("Face Roller", "Dropper Case"),
                    ("Serum Refill",),
                    series=("Seven Step Glow", "Step"),
                ),
                Category(
                    "Moisturisers",
                    ("Day Cream", "Night Cream", "Gel Moisturiser", "Face Oil"),
                    ("Gua Sha Stone", "Cream Spatula"),
                    ("Cream Refill Pod",),
                ),
                Category(
                    "Face Masks",
                    ("Clay Mask", "Overnight Mask", "Peel Off Mask"),
                    ("Mask Brush", "Spa Headband"),
                    ("Sheet Mask Sachets",),
                    series=("Sunday Evening Ritual", "Mask"),
                ),
                Category(
                    "Sun Care",
                    ("Sun Lotion", "Sun Stick", "After Sun Gel"),
                    ("Beach Pouch", "Sun Hat"),
                    ("Sun Lotion Refill",),
                ),
            ),
            "Make-up": (
                Category(
                    "Lip Colour",
                    ("Lipstick", "Lip Gloss", "Lip Stain", "Lip Crayon"),
                    ("Lip Liner", "Lip Scrub"),
                    ("Lip Balm",),
                    series=("Letters in Red", "Shade"),
                ),
                Category(
                    "Eye Make-up",
                    ("Eyeshadow Palette", "Eyeliner Pen", "Brow Gel"),
                    ("Eyelash Curler", "Blending Brush Set"),
                    ("Mascara", "Make-up Remover Wipes"),
                    series=("Midnight Theatre", "Palette"),
                ),
                Category(
                    "Nail Care",
                    ("Nail Polish Trio", "Gel Nail Kit", "Press On Nails"),
                    ("Nail File Set", "Drying Lamp"),
                    ("Nail Polish Remover", "Top Coat"),
                ),
            ),
            "Hair": (
                Category(
                    "Shampoo",
                    ("Shampoo Bar", "Volume Shampoo", "Scalp Scrub"),
                    ("Soap Saver Tin", "Scalp Massager"),
                    ("Shampoo Refill", "Conditioner Refill"),
                ),
                Category(
                    "Hair Styling",
                    ("Curl Cream", "Styling Clay", "Sea Salt Spray"),
                    ("Paddle Brush", "Hair Clips", "Silk Scrunchies"),
                    ("Hair Mousse",),
                ),
            ),
            "Bath and Body": (
                Category(
                    "Bath",
                    ("Bath Salts", "Bath Bomb Set", "Bubble Bath Elixir"),
                    ("Bath Tray", "Bath Pillow"),
                    ("Bath Salt Refill",),
                    series=("Calendar of Calm", "Bath Box"),
                ),
                Category(
                    "Soap",
                    ("Hand Soap", "Olive Oil Soap", "Exfoliating Soap"),
                    ("Soap Dish", "Nail Brush"),
                    ("Hand Soap Refill",),
                ),
                Category(
                    "Body Lotion",
                    ("Body Butter", "Body Lotion", "Hand Cream Duo"),
                    ("Dry Body Brush", "Cotton Gloves"),
                    ("Lotion Refill Pouch",),
                ),
                Category(
                    "Fragrance",
                    ("Eau de Parfum", "Solid Perfume", "Body Mist"),
                    ("Travel Atomiser", "Perfume Tray"),
                    ("Perfume Refill",),
                    series=("A Year in Scent", "Perfume"),
                ),
            ),
        },
    ),
    "outdoor": Domain(
        role="pre-training",
        department="Sports and Outdoors",
        repeat_rate=0.12,
        audiences=("day hikers", "long distance walkers", "families with children", "cold nights", "beginners"),
        qualities=("light enough to carry all day", "tested in bad weather", "easy to repair", "made to last"),
        sections={
            "Camping": (
                Category(
                    "Tents",
                    ("Two Person Tent", "Family Tent", "Dome Tent", "Tarp Shelter"),
                    ("Ground Sheet", "Peg and Guy Line Kit", "Tent Porch"),
                    ("Waterproofing Spray",),
                ),
                Category(
                    "Sleeping Bags",
                    ("Down Sleeping Bag", "Summer Sleeping Bag", "Camping Quilt"),
                    ("Sleeping Bag Liner", "Compression Sack"),
                ),
                Category(
                    "Sleeping Mats",
                    ("Inflatable Mat", "Foam Mat", "Hammock"),
                    ("Foot Pump", "Camping Pillow", "Mat Repair Kit"),
                ),
                Category(
                    "Camp Lighting",
                    ("Camping Lantern", "Head Torch", "String Lights"),
                    ("Lantern Hook", "Solar Charger"),
                    ("Rechargeable Batteries",),
                    series=("Lights of the Fjord", "Lantern"),
                ),
                Category(
                    "Camp Cooking",
                    ("Camping Stove", "Camp Cook Set", "Fire Pit Grill"),
                    ("Windshield", "Folding Cutlery", "Coffee Dripper"),
                    ("Gas Canisters", "Fire Lighters"),
                ),
                Category(
                    "Trail Food",
                    ("Trail Meal Box", "Snack Tin", "Expedition Breakfast"),
                    ("Long Handled Spoon", "Food Pouch Cosy"),
                    ("Energy Bars", "Dried Meal Pouches"),
                ),
            ),
            "Hiking": (
                Category(
                    "Backpacks",
                    ("Day Pack", "Trekking Backpack", "Roll Top Backpack", "Hip Pack"),
                    ("Rain Cover", "Packing Cubes", "Bottle Sleeve"),
                ),
                Category(
                    "Bottles",
                    ("Steel Bottle", "Insulated Flask", "Water Bladder"),
                    ("Bottle Brush", "Carry Strap"),
                    ("Filter Cartridge", "Electrolyte Tablets"),
                ),
                Category(
                    "Trail Guides",
                    ("Pocket Trail Guide", "Bird Spotting Guide", "Stargazing Guide"),
                    ("Map Case", "Compass"),
                    series=("Ways Across Merrowland", "Volume"),
                ),
                Category(
                    "Walking Poles",
                    ("Trekking Poles", "Folding Poles", "Walking Staff"),
                    ("Rubber Tips", "Snow Baskets"),
                    series=("Summit Badges of Merrowland", "Badge"),
                ),
                Category(
                    "Footwear",
                    ("Hiking Boots", "Trail Sandals", "Trail Running Shoes"),
                    ("Gaiters", "Insoles", "Spare Laces"),
                    ("Boot Wax", "Merino Socks"),
                ),
            ),
            "Clothing": (
                Category(
                    "Rain Wear",
                    ("Rain Jacket", "Rain Poncho", "Rain Trousers"),
                    ("Jacket Hood", "Dry Bag"),
                    ("Fabric Wash",),
                ),
                Category(
                    "Warm Layers",
                    ("Fleece Jacket", "Merino Base Layer", "Down Vest"),
                    ("Beanie", "Neck Warmer", "Touch Gloves"),
                ),
            ),
            "Climbing": (
                Category(
                    "Climbing",
                    ("Climbing Harness", "Bouldering Mat", "Climbing Rope"),
                    ("Carabiner Set", "Chalk Bag", "Rope Bag"),
                    ("Chalk Balls", "Finger Tape"),
                    series=("Stone School", "Course"),
                ),
            ),
        },
    ),
    "crafts": Domain(
        role="choosing a checkpoint",
        department="Arts and Crafts",
        repeat_rate=0.24,
        audiences=("beginners", "children", "patient hands", "evening classes", "gift makers"),
        qualities=("with printed instructions", "nothing else needed", "easy to store", "loved by teachers"),
        sections={
            "Yarn and Fabric": (
                Category(
                    "Knitting",
                    ("Scarf Knitting Kit", "Jumper Knitting Kit", "Blanket Knitting Kit"),
                    ("Bamboo Needles", "Row Counter", "Yarn Bowl"),
                    ("Merino Yarn", "Sock Yarn"),
                    series=("The Patchwork Shawl", "Part"),
                ),
                Category(
                    "Crochet",
                    ("Crochet Animal Kit", "Crochet Bag Kit", "Granny Square Kit"),
                    ("Crochet Hook Set", "Stitch Markers"),
                    ("Cotton Yarn",),
                    series=("Tiny Menagerie", "Pattern"),
                ),
                Category(
                    "Embroidery",
                    ("Embroidery Kit", "Cross Stitch Kit", "Punch Needle Kit"),
                    ("Embroidery Hoop", "Needle Case"),
                    ("Embroidery Thread",),
                ),
                Category(
                    "Sewing",
                    ("Cushion Sewing Kit", "Tote Bag Sewing Kit", "Dress Pattern"),
                    ("Fabric Scissors", "Pin Cushion", "Measuring Tape"),
                    ("Sewing Thread", "Cotton Fabric Bundle"),
                ),
                Category(
                    "Quilting",
                    ("Quilt Kit", "Wall Hanging Kit", "Baby Quilt Kit"),
                    ("Rotary Cutter", "Quilting Ruler"),
                    ("Quilt Batting",),
                    series=("Block of the Month", "Block"),
                ),
            ),
            "Painting": (
                Category(
                    "Watercolour",
                    ("Watercolour Set", "Watercolour Brush Pens", "Travel Paint Box"),
                    ("Mixing Palette", "Water Brush"),
                    ("Watercolour Paper",),
                    series=("Paint Along Postcards", "Lesson"),
                ),
                Category(
                    "Acrylic Painting",
                    ("Acrylic Paint Set", "Paint by Numbers", "Canvas Starter Box"),
                    ("Table Easel", "Brush Roll"),
                    ("Acrylic Paint Tubes", "Stretched Canvas"),
                ),
                Category(
                    "Drawing",
                    ("Colour Pencil Tin", "Charcoal Set", "Ink Pen Set"),
                    ("Pencil Roll", "Blending Stumps"),
                    ("Sketch Pad", "Ink Cartridges"),
                ),
            ),
            "Paper": (
                Category(
                    "Lettering",
                    ("Calligraphy Set", "Brush Lettering Kit", "Wax Seal Kit"),
                    ("Guide Sheets", "Pen Rest"),
                    ("Calligraphy Ink", "Sealing Wax"),
                    series=("Alphabets by Candlelight", "Workbook"),
                ),
                Category(
                    "Scrapbooking",
                    ("Scrapbook Album", "Memory Book", "Travel Journal Kit"),
                    ("Corner Punch", "Photo Corners"),
                    ("Washi Tape", "Sticker Sheets"),
                ),
                Category(
                    "Origami",
                    ("Origami Kit", "Paper Flower Kit", "Paper Model"),
                    ("Folding Bone", "Display Stand"),
                    ("Origami Paper",),
                    series=("Folded City", "Model"),
                ),
            ),
            "Making": (
                Category(
                    "Jewellery Making",
                    ("Bead Kit", "Earring Kit", "Friendship Bracelet Kit"),
                    ("Pliers Set", "Bead Tray"),
                    ("Glass Beads", "Jewellery Wire"),
                ),
                Category(
                    "Candle Making",
                    ("Candle Making Kit", "Beeswax Candle Kit", "Scented Candle Kit"),
                    ("Pouring Jug", "Candle Moulds"),
                    ("Soy Wax", "Candle Wicks"),
                ),
                Category(
                    "Pottery",
                    ("Air Dry Clay Kit", "Plant Pot Kit", "Bowl Painting Kit"),
                    ("Modelling Tools", "Banding Wheel"),
                    ("Air Dry Clay", "Glaze Paint"),
                ),
            ),
        },
    ),
    "pets": Domain(
        role="zero-shot test",
        department="Pet Supplies",
        repeat_rate=0.33,
        audiences=("young pets", "senior pets", "nervous pets", "curious pets", "homes with several pets"),
        qualities=("recommended by vets", "easy to keep clean", "tested by choosy pets", "made without plastic"),
        sections={
            "Dogs": (
                Category(
                    "Dog Food",
                    ("Dog Food Starter Box", "Puppy Menu", "Dog Dinner Sampler"),
                    ("Feeding Bowl", "Food Storage Tub", "Measuring Scoop"),
                    ("Dry Dog Food", "Wet Dog Food"),
                ),
                Category(
                    "Dog Treats",
                    ("Dog Biscuit Tin", "Training Treat Set", "Chew Bone Selection"),
                    ("Treat Pouch", "Treat Jar"),
                    ("Dental Sticks", "Training Treats"),
                    series=("Treats Around the World", "Tasting Box"),
                ),
                Category(
                    "Dog Toys",
                    ("Rope Dog Toy", "Squeaky Dog Toy", "Fetch Ball Launcher"),
                    ("Spare Balls", "Toy Basket"),
                    series=("Clever Paws Puzzle Feeder", "Level"),
                ),
                Category(
                    "Dog Walking",
                    ("Dog Harness", "Dog Lead", "Dog Collar"),
                    ("Name Tag", "Collar Light", "Bag Dispenser"),
                    ("Waste Bags",),
                ),
                Category(
                    "Dog Clothing",
                    ("Dog Raincoat", "Dog Jumper", "Dog Bandana"),
                    ("Paw Boots", "Drying Robe"),
                ),
                Category(
                    "Beds",
                    ("Pet Bed", "Pet Sofa", "Cooling Mat"),
                    ("Fleece Blanket", "Spare Bed Cover"),
                ),
                Category(
                    "Travel",
                    ("Pet Carrier", "Car Seat for Pets", "Folding Crate"),
                    ("Travel Bowl", "Carrier Cushion"),
                    ("Calming Spray",),
                ),
            ),
            "Cats": (
                Category(
                    "Cat Trees",
                    ("Cat Tree", "Scratching Post", "Window Perch"),
                    ("Replacement Sisal Rope", "Hanging Toy"),
                    series=("Whisker Village", "House"),
                ),
                Category(
                    "Cat Toys",
                    ("Feather Wand", "Catnip Mouse Set", "Cat Tunnel"),
                    ("Wand Replacement Heads", "Ball Track"),
                    ("Dried Catnip",),
                    series=("Mouse Hunters Club", "Toy Box"),
                ),
                Category(
                    "Cat Food",
                    ("Cat Food Starter Box", "Kitten Menu", "Cat Dinner Sampler"),
                    ("Slow Feeder", "Water Fountain"),
                    ("Dry Cat Food", "Cat Food Pouches"),
                ),
                Category(
                    "Cat Litter",
                    ("Litter Tray", "Covered Litter Box", "Litter Cabinet"),
                    ("Litter Scoop", "Litter Mat"),
                    ("Clumping Litter", "Tray Liners"),
                ),
                Category(
                    "Grooming",
                    ("Grooming Brush", "Pet Bath Set", "Nail Clippers"),
                    ("Grooming Glove", "Pet Towel"),
                    ("Pet Shampoo", "Ear Wipes"),
                ),
            ),
            "Small Animals and Birds": (
                Category(
                    "Small Pets",
                    ("Rabbit Hutch", "Hamster House", "Guinea Pig Run"),
                    ("Exercise Wheel", "Hay Rack"),
                    ("Meadow Hay", "Wood Shavings"),
                ),
                Category(
                    "Birds",
                    ("Bird Cage", "Bird Swing", "Garden Bird Feeder"),
                    ("Seed Catcher", "Bird Bath"),
                    ("Bird Seed", "Fat Balls"),
                    series=("Songbirds of the Hedge", "Nest Box"),
                ),
            ),
        },
    ),
}
