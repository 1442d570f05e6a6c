// The chosen image: its maps and pixels, what is painted on them, and what is pointed at.

import { $, element } from "./controls.js";
import { Grid, paintCodes } from "./paint.js";

const title = (name) => name[0].toUpperCase() + name.slice(1);

export class Bench {
  constructor(info, palettes, lookUp) {
    this.levels = info.levels;
    this.palettes = palettes;
    this.lookUp = lookUp;
    this.item = null;
    this.found = null; // { level, code } that is looked up
    this.grids = [...info.levels, { name: "image", ...info.image }].map((level, n) => this.addGrid(level, n));
    for (const tool of document.getElementsByName("tool")) tool.onchange = () => { $("maps").dataset.tool = this.tool; };
    $("clear").onclick = () => this.clearPaint();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
  }

  get tool() {
    return document.querySelector('[name="tool"]:checked').value;
  }

  addGrid({ name, height, width }, n) {
    const canvas = element("canvas", { tabIndex: 0 });
    const isImage = n === this.levels.length;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", isImage
      ? "The image. Arrow keys move, Enter looks up its finest code, space does what the tool says, on all levels."
      : `${title(name)} map, ${height} by ${width} codes. Arrow keys move, Enter looks up a code, space does what the tool says.`);
    const caption = isImage ? "Image" : `${title(name)} codes, ${height}×${width}`;
    const figure = element("figure", {}, canvas, element("figcaption", { textContent: caption }));
    $("maps").append(figure);
    const grid = new Grid(canvas, height, width);
    grid.caption = figure.lastChild;
    let drawing = false;
    canvas.onpointerdown = (event) => {
      if (event.button || !this.item) return;
      if (this.tool === "look") return this.look(n, ...grid.at(event));
      drawing = true;
      canvas.setPointerCapture(event.pointerId);
      this.brush(n, ...grid.at(event));
      event.preventDefault();
    };
    canvas.onpointermove = (event) => {
      grid.cursor = grid.at(event);
      if (drawing) this.brush(n, ...grid.cursor);
      else if (this.tool !== "look") this.show();
    };
    canvas.onpointerup = canvas.onpointercancel = () => { drawing = false; };
    canvas.onpointerleave = canvas.onblur = () => { grid.cursor = null; this.show(); };
    canvas.onkeydown = (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      const [y, x] = grid.cursor ?? [0, 0];
      if (step) {
        grid.cursor = [Math.min(height - 1, Math.max(0, y + step[0])), Math.min(width - 1, Math.max(0, x + step[1]))];
        this.show();
      } else if (event.key === "Enter" || (event.key === " " && this.tool === "look")) this.look(n, y, x);
      else if (event.key === " ") this.brush(n, y, x);
      else return;
      this.tell(n, ...(grid.cursor ?? [y, x]));
      event.preventDefault();
    };
    return grid;
  }

  look(n, y, x) {
    const found = this.item && this.codeAt(n, y, x);
    if (found) this.lookUp(found.level, found.code);
  }

  // The code at a cell of a map, or the finest one at a pixel; null where none is drawn yet.
  codeAt(n, y, x) {
    const level = Math.min(n, this.levels.length - 1), [row, column] = this.cellOf(level, n, y, x);
    const code = this.item.codes[level]?.[row]?.[column] ?? -1;
    return code < 0 ? null : { level, code };
  }

  // Where a level's map has the cell that lies under one of another grid.
  cellOf(level, n, y, x) {
    const { height, width } = this.levels[level], grid = this.grids[n];
    return [Math.floor(y * height / grid.height), Math.floor(x * width / grid.width)];
  }

  // Says what is at a cell, for those who do not see it.
  tell(n, y, x) {
    if (!this.item) return;
    const words = [`Row ${y + 1}`, `column ${x + 1}`], found = this.codeAt(n, y, x);
    if (found) words.push(`code ${found.code}`);
    const level = Math.min(n, this.levels.length - 1), [row, column] = this.cellOf(level, n, y, x);
    if (this.item.masks[level][row][column]) words.push("painted");
    $("cell").textContent = words.join(", ");
  }

  // Paints or erases the codes around a cell; on the image, those of all levels.
  brush(n, y, x) {
    const isImage = n === this.levels.length, grid = this.grids[n], last = this.grids[this.levels.length - 1];
    let size = Number($("brush").value);
    if (isImage) size = Math.round(size * grid.height / last.height);
    const value = this.tool !== "erase";
    const [top, left] = [y - ((size - 1) >> 1), x - ((size - 1) >> 1)];
    this.levels.forEach(({ height, width }, level) => {
      if (!isImage && level !== n && !(level > n && $("below").checked)) return;
      const down = height / grid.height, right = width / grid.width;
      for (let r = Math.floor(top * down); r < (top + size) * down; r++) {
        for (let c = Math.floor(left * right); c < (left + size) * right; c++) {
          if (r >= 0 && r < height && c >= 0 && c < width) this.item.masks[level][r][c] = value;
        }
      }
    });
    this.show();
  }

  clearPaint() {
    if (this.item) this.item.masks = this.emptyMasks();
    this.show();
  }

  emptyMasks() {
    return this.levels.map(({ height, width }) => Array.from({ length: height }, () => Array(width).fill(false)));
  }

  // The upload itself stands beside its reconstruction.
  showUpload(original) {
    this.original ??= (() => {
      const canvas = element("canvas"), figure = element("figure", {}, canvas, element("figcaption", { textContent: "Upload" }));
      $("maps").append(figure);
      return { figure, canvas };
    })();
    const { figure, canvas } = this.original;
    figure.hidden = !original;
    this.grids.at(-1).caption.textContent = original ? "Reconstruction" : "Image";
    if (!original) return;
    Object.assign(canvas, { width: original.width, height: original.height });
    canvas.getContext("2d").drawImage(original, 0, 0);
  }

  choose(item) {
    this.item = item;
    item.masks ??= this.emptyMasks();
    this.show();
  }

  get painted() {
    return Boolean(this.item?.masks.flat(2).some(Boolean));
  }

  // Whether all codes are known; an image that was stopped halfway has some that are not.
  get whole() {
    return Boolean(this.item?.codes.flat(2).every((code) => code >= 0));
  }

  // Draws everything again; many calls between two frames draw once.
  show() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      if (this.item) this.grids.forEach((grid, n) => this.showGrid(grid, n));
      $("clear").disabled = !this.painted;
      $("fill").disabled = !this.painted || !this.whole;
    });
  }

  showGrid(grid, n) {
    const { item, levels } = this;
    grid.clear();
    if (n === levels.length) {
      const bitmap = item.image ?? item.preview;
      if (bitmap) grid.image(bitmap);
      levels.forEach(({ height, width }, level) => {
        // The finest level's paint covers what the coarser ones' show.
        if (level === levels.length - 1) grid.hatch(height, width, (y, x) => item.masks[level][y][x]);
      });
    } else {
      const rows = item.codes[n];
      if (rows) paintCodes(grid.context, rows, this.palettes[n]);
      grid.hatch(levels[n].height, levels[n].width, (y, x) => item.masks[n][y][x]);
      if (rows && this.found?.level === n) {
        rows.forEach((codes, y) => codes.forEach((code, x) => { if (code === this.found.code) grid.outline(y, x); }));
      }
    }
    if (grid.cursor) {
      const last = this.grids[levels.length - 1];
      let size = this.tool === "look" ? 1 : Number($("brush").value);
      if (n === levels.length) size = Math.round(size * grid.height / last.height);
      grid.outline(grid.cursor[0] - ((size - 1) >> 1), grid.cursor[1] - ((size - 1) >> 1), size, true);
    }
  }
}
