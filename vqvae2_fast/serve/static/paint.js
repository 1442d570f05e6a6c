// Canvases: code maps in the colours of their codebooks, images, masks, and what is pointed at.

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Codes (rows, -1 where unknown) as coloured squares over the whole canvas.
export function paintCodes(context, rows, palette) {
  const { width, height } = context.canvas;
  const down = height / rows.length, right = width / rows[0].length;
  rows.forEach((codes, y) => codes.forEach((code, x) => {
    if (code < 0) return;
    context.fillStyle = palette[code];
    context.fillRect(Math.round(x * right), Math.round(y * down), Math.ceil(right), Math.ceil(down));
  }));
}

// A tile of the gallery: the image if there is one, or the codes that are drawn so far.
export function paintTile(canvas, item, palettes) {
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (item.image) {
    context.drawImage(item.image, 0, 0, canvas.width, canvas.height);
    return;
  }
  if (item.preview) context.drawImage(item.preview, 0, 0, canvas.width, canvas.height);
  item.codes.forEach((rows, level) => { if (level || !item.preview) paintCodes(context, rows, palettes[level]); });
}

// One grid of the bench with what lies over it.
export class Grid {
  constructor(canvas, height, width) {
    this.canvas = canvas;
    this.height = height;
    this.width = width;
    const cell = Math.max(4, Math.floor(640 / Math.max(height, width)));
    canvas.width = cell * width;
    canvas.height = cell * height;
    this.cell = cell;
    this.cursor = null;
  }

  get context() {
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    return context;
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  image(bitmap) {
    this.context.drawImage(bitmap, 0, 0, this.canvas.width, this.canvas.height);
  }

  // Hatches cells: `at(y, x)` says which, on a grid of another size too.
  hatch(rows, columns, at) {
    const { context } = this, down = this.canvas.height / rows, right = this.canvas.width / columns;
    context.save();
    context.beginPath();
    for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) if (at(y, x)) context.rect(x * right, y * down, right, down);
    context.clip();
    context.globalAlpha = 0.45;
    context.fillStyle = color("--paint");
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.globalAlpha = 1;
    context.strokeStyle = color("--paint");
    context.lineWidth = 3;
    context.beginPath();
    for (let s = -this.canvas.height; s < this.canvas.width; s += 14) {
      context.moveTo(s, 0);
      context.lineTo(s + this.canvas.height, this.canvas.height);
    }
    context.stroke();
    context.restore();
  }

  // Outlines a square of cells.
  outline(y, x, size = 1, dashed = false) {
    const { context, cell } = this;
    for (const [style, width] of [["#fff", 7], ["#000", 3]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.setLineDash(dashed ? [8, 6] : []);
      context.strokeRect(x * cell + 2, y * cell + 2, size * cell - 4, size * cell - 4);
    }
    context.setLineDash([]);
  }

  // The cell under a pointer.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value * size)));
    return [
      inside((event.clientY - box.top) / box.height, this.height),
      inside((event.clientX - box.left) / box.width, this.width),
    ];
  }
}
