"""Which ImageNet labels a picture of each COCO class may get: an open table, written by hand.

Names are the first synonym of each label as the list ships; `a..b` stands for all labels between two, since ImageNet
keeps its labels in the order of WordNet. The sets are wide on purpose: they hold what a classifier is known to call an
object of the class when it is wrong about the make, the breed or the part. Where ImageNet lacks a class that it has
relatives of (a kite, a skateboard), they hold these and what surrounds it. A class without even these (a frisbee, a
baseball glove) is left out: the absence of labels tells nothing of it.
"""

_DOGS = "Chihuahua..grey fox"
_CATS = "hyena..cheetah, Madagascar cat"
_BIRDS = "cock..great grey owl, black grouse..black swan, white stork..albatross"
_HOOFED = "sorrel..llama, horse cart, oxcart"
_ROUND_BIKES = (
    "bicycle-built-for-two, mountain bike, tricycle, unicycle, moped, motor scooter, crash helmet, jinrikisha"
)
_CARS = (
    "ambulance, beach wagon, cab, car mirror, car wheel, convertible, go-kart, golfcart, grille, jeep, limousine, "
    "minivan, Model T, police van, racer, sports car, pickup, passenger car, minibus, seat belt, recreational vehicle"
)
_TRUCKS = (
    "fire engine, garbage truck, moving van, pickup, tow truck, trailer truck, police van, minibus, ambulance, "
    "tractor, harvester, thresher, snowplow, forklift, half track, recreational vehicle, mobile home, tank, jeep, "
    "beach wagon, amphibian, milk can, minivan, car wheel"
)
_RAIL = (
    "bullet train, electric locomotive, freight car, passenger car, steam locomotive, streetcar, trolleybus, trailer "
    "truck"
)
_BOATS = (
    "aircraft carrier, canoe, catamaran, container ship, dock, fireboat, gondola, lifeboat, liner, paddle, "
    "paddlewheel, pirate, schooner, speedboat, submarine, trimaran, yawl, boathouse, wreck, drilling platform, "
    "amphibian"
)
_BALLS = (
    "baseball, basketball, croquet ball, golf ball, ping-pong ball, puck, rugby ball, soccer ball, tennis ball, "
    "volleyball, racket, balloon"
)
_VESSELS = (
    "cup, coffee mug, espresso, measuring cup, beer glass, goblet, pitcher, water jug, whiskey jug, coffeepot, "
    "teapot, eggnog, soup bowl, mixing bowl, consomme, hot pot, bucket, vase, pot, beaker, red wine, saltshaker, "
    "ladle, mortar, pill bottle, cocktail shaker, milk can, piggy bank, face powder, wooden spoon, tray, plate, "
    "spatula, strainer, bottlecap, lotion, espresso maker, chocolate sauce"
)
_BOTTLES = (
    "beer bottle, pop bottle, water bottle, wine bottle, pill bottle, lotion, sunscreen, hair spray, perfume, whiskey "
    "jug, red wine, cocktail shaker, beaker, saltshaker, soap dispenser, milk can, water jug, nipple, beer glass, "
    "bottlecap, lighter, oil filter"
)
_FOOD = (
    "bakery, guacamole..potpie, burrito, hay, confectionery, corn, acorn, buckeye, hip, plate, wooden spoon, frying "
    "pan, tray, restaurant, butcher shop, grocery store"
)
_SEATS = (
    "barber chair, folding chair, rocking chair, throne, park bench, studio couch, desk, dining table, patio, shoji, "
    "bassinet, cradle, crib, restaurant, toilet seat, stretcher, home theater, library"
)
_BEDS = (
    "studio couch, four-poster, quilt, pillow, crib, cradle, bassinet, sleeping bag, mosquito net, sliding door, "
    "window shade, shoji, desk, rocking chair, home theater, theater curtain, diaper, prayer rug"
)
_SCREENS = (
    "television, monitor, screen, desktop computer, laptop, notebook, entertainment center, home theater, web site, "
    "CD player, tape player, cassette player, radio, loudspeaker, oscilloscope, projector, modem, desk"
)
_HANDHELD = (
    "cellular telephone, iPod, hand-held computer, remote control, radio, modem, dial telephone, pay-phone, digital "
    "clock, hard disc, mouse, Polaroid camera, reflex camera, joystick, cassette, lighter, switch, notebook, digital "
    "watch, combination lock"
)
_BAGS = (
    "backpack, mailbag, purse, plastic bag, sleeping bag, shopping basket, wallet, chest, hamper, buckle, pencil box, "
    "shopping cart, crate, punching bag, safe, medicine chest, packet, military uniform, bulletproof vest, holster"
)
_KITCHEN = (
    "microwave, stove, toaster, Dutch oven, rotisserie, dishwasher, refrigerator, espresso maker, Crock Pot, waffle "
    "iron, washer, space heater, tape player, home theater, cash machine, photocopier, safe, medicine chest, "
    "entertainment center, grille, vending machine, wardrobe, china cabinet, file, frying pan, wok, bakery"
)
_BASINS = (
    "washbasin, bathtub, tub, toilet seat, soup bowl, mixing bowl, plunger, soap dispenser, toilet tissue, medicine "
    "chest, dishwasher, washer, shower curtain, bucket, fountain, paper towel"
)
_BLADES = (
    "letter opener, cleaver, can opener, corkscrew, spatula, wooden spoon, ladle, screwdriver, ballpoint, fountain "
    "pen, hammer, hatchet, power drill, rule, syringe, scabbard, assault rifle, rifle, revolver, paintbrush, hair "
    "slide, lipstick, matchstick, plane, safety pin, rubber eraser, nail, pick, shovel, strainer"
)
_POLES = (
    "traffic light, street sign, parking meter, gas pump, pay-phone, mailbox, pole, spotlight, flagpole, scoreboard, "
    "loudspeaker, digital clock, torch, beacon, cash machine, vending machine, ashcan, oil filter, gasmask, bell "
    "cote, birdhouse, fountain, barrel, piggy bank"
)
_BOARDS = "ski, snowmobile, dogsled, bobsled, alp, paddle, ballplayer, balance beam, puck, speedboat"
_KITES = (
    "kite, parachute, balloon, umbrella, airship, wing, warplane, airliner, pinwheel, flagpole, maypole, bow, spider "
    "web, poncho, quill, projectile, missile, yawl, schooner, catamaran, trimaran, bald eagle, vulture, albatross, "
    "sulphur butterfly, monarch, admiral, lycaenid, pole, mountain tent, plastic bag, mask"
)
_SURFBOARDS = (
    "paddle, canoe, speedboat, catamaran, trimaran, yawl, lifeboat, wing, snorkel, scuba diver, swimming trunks, "
    "bikini, maillot, bathing cap, seashore, sandbar, promontory, breakwater, coral reef, ski, snowmobile, dugong, "
    "grey whale, killer whale, great white shark..hammerhead, sea lion, gondola, submarine, balance beam, lakeside"
)
_SKATEBOARDS = (
    "running shoe, knee pad, crash helmet, football helmet, horizontal bar, parallel bars, crutch, tricycle, unicycle, "
    "motor scooter, moped, go-kart, barrow, car wheel, jean, sweatshirt, sock, clog, Loafer, sandal, cowboy boot, "
    "bannister, dumbbell, barbell, plane, swing, shopping cart"
)
_BRUSHES = (
    "paintbrush, swab, broom, lipstick, lotion, sunscreen, face powder, plunger, soap dispenser, hair spray, spindle, "
    "rubber eraser, pencil box, Band Aid, nipple, medicine chest, washbasin, stethoscope, whistle, harmonica"
)
_BOOKS = (
    "book jacket, bookcase, bookshop, comic book, crossword puzzle, library, menu, binder, notebook, envelope, "
    "packet, web site, wallet, file, carton, jigsaw puzzle, rule, pencil box, tray"
)
_CLOCKS = (
    "analog clock, digital clock, wall clock, digital watch, stopwatch, hourglass, barometer, sundial, odometer, "
    "magnetic compass, scale, bell cote, church, loudspeaker, plate, radio, scoreboard"
)
_PLANTS = (
    "pot, vase, greenhouse, patio, daisy, yellow lady's slipper, rapeseed, bonnet, head cabbage..cardoon, hip, corn, "
    "fig, pineapple, artichoke, buckeye, acorn, coral fungus, bucket, birdhouse, lakeside"
)
_TEDDIES = f"teddy, {_DOGS}, brown bear..sloth bear, koala, wombat, giant panda, hamster, piggy bank, wool, toyshop"

LABELS: dict[str, str] = {
    "bicycle": _ROUND_BIKES + ", car wheel, disk brake, shopping cart, barrow",
    "car": _CARS,
    "motorcycle": _ROUND_BIKES + ", snowmobile, disk brake, car wheel, go-kart, car mirror, racer",
    "airplane": "airliner, warplane, wing, space shuttle, airship, aircraft carrier, missile, projectile, parachute",
    "bus": "minibus, school bus, trolleybus, streetcar, passenger car, police van, moving van, recreational vehicle, "
    "trailer truck, ambulance, minivan, fire engine, electric locomotive, cab",
    "train": _RAIL,
    "truck": _TRUCKS,
    "boat": _BOATS,
    "traffic light": _POLES,
    "stop sign": _POLES + ", shield, crossword puzzle, tow truck, school bus, plate, menu, theater curtain",
    "fire hydrant": _POLES + ", fire engine, water bottle, pop bottle, pill bottle, milk can, bucket",
    "parking meter": _POLES + ", odometer",
    "bench": _SEATS + ", picket fence, dock, pier",
    "bird": _BIRDS + ", birdhouse, quill, echidna",
    "cat": _CATS + ", hamster, Chihuahua, polecat, weasel, lesser panda",
    "dog": _DOGS + ", hyena, brown bear..sloth bear, muzzle, dogsled, hog, guinea pig",
    "horse": _HOOFED + ", Ibizan hound, Great Dane, whippet, Italian greyhound, Saluki, barn, oxcart",
    "sheep": _HOOFED
    + ", Old English sheepdog, komondor, kuvasz, Great Pyrenees, Bedlington terrier, wool, hog, Angora",
    "cow": _HOOFED + ", Great Dane, Saint Bernard, barn, brown bear..sloth bear",
    "elephant": "Indian elephant, African elephant, tusker, hippopotamus, water buffalo, warthog, triceratops",
    "bear": "brown bear..sloth bear, lesser panda, giant panda, Newfoundland, chow, beaver, wombat, gorilla, bison, "
    "Tibetan mastiff, teddy, badger",
    "zebra": "zebra, impala, gazelle, hartebeest, sorrel, tiger",
    "giraffe": f"{_HOOFED}, cheetah, leopard, jaguar, crane",
    "backpack": _BAGS,
    "umbrella": "umbrella, parachute, lampshade, shower cap, mountain tent, balloon, sombrero, mushroom, "
    "jellyfish, poncho",
    "handbag": _BAGS,
    "tie": "bow tie, bolo tie, Windsor tie, suit, stole, velvet, groom",
    "suitcase": _BAGS + ", mailbox, carton, printer, cassette player",
    "skis": _BOARDS,
    "snowboard": _BOARDS,
    "kite": _KITES,
    "skateboard": f"{_BOARDS}, {_SKATEBOARDS}",
    "surfboard": f"{_BOARDS}, {_SURFBOARDS}",
    "sports ball": _BALLS + ", maraca, orange, lemon, bubble, ladybug",
    "baseball bat": "baseball, ballplayer, racket, rifle, golf ball, ski, paddle, swab, shovel, matchstick, broom",
    "tennis racket": "racket, tennis ball, ping-pong ball, croquet ball, ballplayer, spatula, strainer, frying pan",
    "bottle": _BOTTLES,
    "wine glass": _VESSELS + ", wine bottle, hourglass",
    "cup": _VESSELS,
    "bowl": _VESSELS + ", washbasin, bathtub, shower cap, wok, frying pan, Petri dish, guacamole..mashed potato, dough",
    "fork": _BLADES,
    "knife": _BLADES,
    "spoon": _BLADES + ", soup bowl",
    "scissors": _BLADES + ", carpenter's kit, sunglass, sunglasses, loupe, binoculars, hook, buckle, knot, chain saw",
    "toothbrush": f"{_BLADES}, {_BRUSHES}",
    "banana": _FOOD,
    "apple": _FOOD,
    "orange": _FOOD + ", croquet ball, tennis ball",
    "broccoli": _FOOD,
    "carrot": _FOOD,
    "sandwich": _FOOD,
    "hot dog": _FOOD,
    "pizza": _FOOD,
    "donut": _FOOD,
    "cake": _FOOD + ", candle, face powder",
    "chair": _SEATS,
    "couch": _SEATS + ", pillow, quilt, sleeping bag",
    "bed": _BEDS,
    "potted plant": _PLANTS,
    "dining table": _SEATS + ", pool table, plate, tray, restaurant, prayer rug",
    "toilet": _BASINS,
    "sink": _BASINS,
    "tv": _SCREENS,
    "laptop": _SCREENS + ", computer keyboard, typewriter keyboard, space bar, mouse, hand-held computer, binder",
    "mouse": "mouse, computer keyboard, joystick, hard disc, modem, remote control, electric ray, pencil sharpener",
    "remote": _HANDHELD + ", computer keyboard, space bar",
    "keyboard": "computer keyboard, typewriter keyboard, space bar, laptop, notebook, remote control, mouse, accordion",
    "cell phone": _HANDHELD,
    "microwave": _KITCHEN + ", television, monitor",
    "oven": _KITCHEN,
    "toaster": _KITCHEN,
    "refrigerator": _KITCHEN + ", wardrobe, sliding door",
    "book": _BOOKS,
    "clock": _CLOCKS,
    "vase": _VESSELS + ", lampshade, table lamp, water bottle, perfume, wine bottle",
    "teddy bear": _TEDDIES,
    "hair drier": "hand blower, hair spray, power drill, electric fan, vacuum, microphone, iron, stethoscope",
}
