// What a code means: where it occurs, its neighbours, what it decodes to, and how often it is used, if
// its quantiser counts that (`use` is null if not).

import { bitmap } from "./api.js";
import { $, element, rebuild } from "./controls.js";

export class Inspector {
  constructor(levels, changed) {
    this.levels = levels; // name, palette, use, neighbours, patches, columns, side
    this.changed = changed;
    this.level = levels.length - 1;
    this.code = null;
    this.items = [];
    levels.forEach((level, n) => {
      const input = element("input", { type: "radio", name: "inspected", value: n, checked: n === this.level });
      input.onchange = () => this.choose(n, null);
      $("inspected-level").append(element("label", {}, input, element("span", { textContent: level.name })));
      level.order = level.palette.map((_, code) => code);
      if (level.use) level.order.sort((a, b) => level.use[b] - level.use[a]);
    });
    const canvas = $("histogram");
    canvas.onclick = (event) => {
      const box = canvas.getBoundingClientRect(), { order } = this.levels[this.level];
      this.choose(this.level, order[Math.floor((event.clientX - box.left) / box.width * order.length)]);
    };
    canvas.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity }[event.key];
      if (!step) return;
      const { order } = this.levels[this.level];
      const place = order.indexOf(this.code) + step;
      this.choose(this.level, order[Math.min(order.length - 1, Math.max(0, place))]);
      event.preventDefault();
    };
    new ResizeObserver(() => this.showHistogram()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.showHistogram());
  }

  async load() {
    for (const level of this.levels) level.sheet = await bitmap(level.patches);
  }

  choose(level, code) {
    this.level = level;
    this.code = code;
    $("inspected-level").querySelectorAll("input")[level].checked = true;
    this.show();
    this.changed(code === null ? null : { level, code });
  }

  show() {
    $("inspector").hidden = false;
    this.showHistogram();
    const level = this.levels[this.level], { code } = this;
    if (code === null) {
      $("code-patches").replaceChildren();
      $("code-text").textContent = `Choose a code of a map, or ${level.use ? "a bar" : "a colour"}.`;
      return;
    }
    const counts = this.items.map((item) => (item.codes[this.level] ?? []).flat().filter((other) => other === code).length);
    const total = counts.reduce((a, b) => a + b, 0), images = counts.filter(Boolean).length;
    const rank = level.order.indexOf(code) + 1;
    const use = level.use
      ? `is ${(100 * level.use[code]).toFixed(2)} % of all codes in training, number ${rank} of ${level.use.length}. Here it occurs`
      : "occurs here";
    $("code-text").textContent = `Code ${code} of the ${level.name} level ${use} ${total} times, in ${images} of ${this.items.length} images. ` +
      "What it decodes to where it fills the map, and the codes nearest to it:";
    rebuild($("code-patches"), ...[code, ...level.neighbours[code]].map((other) => this.patch(other)));
  }

  patch(code) {
    const level = this.levels[this.level], { side, columns } = level;
    const canvas = element("canvas", { width: side, height: side });
    canvas.getContext("2d").drawImage(level.sheet, (code % columns) * side, Math.floor(code / columns) * side, side, side, 0, 0, side, side);
    const button = element("button", { type: "button", title: `Code ${code}` }, canvas, String(code));
    button.setAttribute("aria-label", `Code ${code}`);
    if (code === this.code) button.setAttribute("aria-current", "true");
    button.onclick = () => this.choose(this.level, code);
    return button;
  }

  // One bar a code; without counts of their use, a strip of their colours by number.
  showHistogram() {
    const canvas = $("histogram"), level = this.levels[this.level], { use } = level;
    canvas.classList.toggle("strip", !use);
    const ratio = devicePixelRatio || 1, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width) return;
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), step = width / level.order.length, most = use?.[level.order[0]];
    level.order.forEach((code, n) => {
      // The square root lets rare codes be seen.
      const bar = (use ? Math.sqrt(use[code] / most) : 1) * (height - 14 * ratio);
      context.fillStyle = level.palette[code];
      context.fillRect(n * step, height - bar, Math.max(1, step - (step > 4 ? 1 : 0)), bar);
      if (code === this.code) {
        context.fillStyle = getComputedStyle(canvas).color;
        context.beginPath();
        const middle = (n + 0.5) * step, tip = height - bar - 2 * ratio;
        context.moveTo(middle, tip);
        context.lineTo(middle - 5 * ratio, tip - 9 * ratio);
        context.lineTo(middle + 5 * ratio, tip - 9 * ratio);
        context.fill();
      }
    });
    $("histogram-text").textContent = use ? this.useText(level)
      : `This quantiser keeps no counts of its codes. The ${level.order.length} ${level.name} codes stand in the order of their numbers.`;
    canvas.setAttribute("aria-label", $("histogram-text").textContent + " Left and right arrows choose a code.");
    canvas.setAttribute("aria-valuemax", level.order.length);
    canvas.setAttribute("aria-valuenow", level.order.indexOf(this.code) + 1);
    canvas.setAttribute("aria-valuetext", this.code === null ? "No code is chosen" : `Code ${this.code}`);
  }

  useText({ name, use }) {
    const used = use.filter((share) => share > 0.1 / use.length).length;
    const entropy = -use.reduce((sum, share) => sum + (share > 0 ? share * Math.log2(share) : 0), 0);
    return `Use of the ${use.length} ${name} codes in training, most frequent first ` +
      `(heights are square roots). ${used} are used more than a tenth of the mean; entropy ${entropy.toFixed(2)} bits.`;
  }
}
