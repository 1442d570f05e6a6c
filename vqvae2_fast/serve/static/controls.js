// The form: class, number, seed, and the settings of each level; and errors beside their controls.

import { Outdated } from "./api.js";

export const $ = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Replaces the children of a list; if the focus was on one of them, it goes to the current one.
export function rebuild(list, ...children) {
  const focused = list.contains(document.activeElement);
  list.replaceChildren(...children);
  if (focused) list.querySelector('[aria-current="true"]')?.focus();
}

// A slider takes any value, so that a card's is kept, but a hand moves it by hundredths.
function moveByHundredths(slider) {
  slider.addEventListener("input", () => { slider.value = Number(slider.value).toFixed(2); });
}

// No number is NaN, which is sent as null.
function numberOf(input, empty = 0) {
  if (input.validity.badInput) return NaN;
  return input.value === "" ? empty : Number(input.value);
}

const perLevel = (value, level, otherwise) => (Array.isArray(value) ? value[level] : value) ?? otherwise;
const HOTTEST = 2; // the end of the sliders, unless a card is hotter
const GROUP = "group:"; // before the name of a group, as the value of its option
const title = (name) => name[0].toUpperCase() + name.slice(1);

// One option per class. The classes of a group, such as "Flags" of "Flags - flag", stand together below
// the group, which is an option too.
function classOptions(classes) {
  const option = (value, textContent) => element("option", { value, textContent });
  const groups = Map.groupBy(classes.map((name, n) => [name, n]), ([name]) => name.split(" - ")[0]);
  return [...groups].flatMap(([group, members]) => {
    const own = members.map(([name, n]) => option(n, name));
    return own.length < 2 ? own : element("optgroup", { label: group }, option(GROUP + group, `${group}: all`), ...own);
  });
}

export class Controls {
  constructor(info, changed) {
    this.info = info;
    this.levels = info.levels.map((level) => this.addLevel(level));
    const { classes } = info;
    $("label").append(...classOptions(classes));
    $("label").prepend(element("option", { value: "all", textContent: "each in turn", selected: true }));
    $("label").append(element("option", { value: "", textContent: "no class" }));
    $("count").value = Math.min(16, info.limits.count, Math.max(8, classes.length));
    for (const hidden of [$("label").parentElement, $("guidance-row")]) hidden.hidden = !classes.length;
    $("count").max = info.limits.count;
    $("candidates").max = info.limits.candidates;
    this.recommend();
    $("recommended").onclick = () => { this.recommend(); changed(); };
    moveByHundredths($("guidance"));
    $("guidance").oninput = () => {
      for (const level of this.levels) level.guidance_scale.value = $("guidance").value;
      this.show();
    };
    const settings = this.levels.flatMap(Object.values);
    for (const input of settings) input.addEventListener("input", () => this.show());
    for (const input of [...settings, $("guidance"), $("label")]) input.addEventListener("input", changed);
  }

  addLevel({ name, codes }) {
    const n = this.info.levels.findIndex((level) => level.name === name);
    const number = (field, label, options) => {
      const input = element("input", { type: "number", ...options });
      input.setAttribute("aria-label", `${label}, ${name}`);
      const box = element("label", {}, label, input);
      box.dataset.field = `${field}.${n}`;
      return [input, box];
    };
    const temperature = element("input", { type: "range", min: 0, max: HOTTEST, step: "any" });
    moveByHundredths(temperature);
    const output = element("span", { className: "value" });
    const slider = element("label", { className: "slider" }, element("span", {}, "Temperature", output), temperature);
    slider.dataset.field = `temperature.${n}`;
    const [top_k, boxK] = number("top_k", "Top-k", { min: 0, max: codes, step: 1, placeholder: "all" });
    const [top_p, boxP] = number("top_p", "Top-p", { min: 0.01, max: 1, step: 0.01 });
    const [guidance_scale, boxG] = number("guidance_scale", "Guidance", { min: -5, max: 20, step: 0.1 });
    boxG.hidden = !this.info.classes.length;
    $("levels").append(element("fieldset", {}, element("legend", { textContent: `${title(name)} level` }), slider,
      element("div", { className: "row" }, boxK, boxP, boxG)));
    temperature.output = output;
    return { temperature, top_k, top_p, guidance_scale };
  }

  recommend() {
    this.set({ temperature: 1, top_k: 0, top_p: 1, guidance_scale: 1, ...this.info.recommended });
  }

  // Shows settings: those recommended, or those of a card.
  set({ temperature, top_k, top_p, guidance_scale }) {
    this.levels.forEach((level, n) => {
      level.temperature.max = Math.max(HOTTEST, perLevel(temperature, n, 1));
      level.temperature.value = perLevel(temperature, n, 1);
      level.top_k.value = perLevel(top_k, n, 0) || "";
      level.top_p.value = perLevel(top_p, n, 1);
      level.guidance_scale.value = perLevel(guidance_scale, n, 1);
    });
    $("guidance").value = this.levels[0].guidance_scale.value;
    this.show();
  }

  show() {
    for (const level of this.levels) level.temperature.output.textContent = Number(level.temperature.value).toFixed(2);
    const scales = [...new Set(this.levels.map((level) => Number(level.guidance_scale.value)))];
    $("guidance-value").textContent = scales.map((s) => s.toFixed(2)).join(" and ");
  }

  // A class, the name of a group, null for none, or a list: all classes or, if no picture can hold
  // them, as many as images, spread over them.
  labelFor(count) {
    const { value } = $("label");
    const { length } = this.info.classes, most = this.info.limits.count;
    const many = length > most ? Math.max(1, Math.min(most, count || 1)) : length;
    if (value === "all" && many) return Array.from({ length: many }, (_, n) => Math.floor((n * length) / many));
    if (value.startsWith(GROUP)) return value.slice(GROUP.length);
    return value === "" || value === "all" ? null : Number(value);
  }

  set label(label) {
    const value = typeof label === "string" ? GROUP + label : label;
    $("label").value = Array.isArray(value) ? "all" : value ?? "";
  }

  get pace() {
    return Number($("pace").value);
  }

  // A request's settings, count and seed. Numbers that are no numbers are sent as null.
  request(count = numberOf($("count"))) {
    const each = (name, empty) => this.levels.map((level) => numberOf(level[name], empty));
    const request = {
      label: this.labelFor(count),
      count,
      seed: numberOf($("seed")),
      temperature: each("temperature", 1),
      top_k: each("top_k", 0),
      top_p: each("top_p", 1),
      previews: this.pace > 0,
    };
    if (this.info.classes.length) request.guidance_scale = each("guidance_scale", 1);
    return request;
  }
}

export function say(text) {
  $("status").textContent = text;
}

export function clearErrors() {
  for (const shown of document.querySelectorAll(".error")) shown.remove();
}

// Shows an error beside the control of its field, or where the status is.
export function showError(error) {
  if (error.name === "AbortError") return;
  const message = element("p", { className: "error", textContent: error.message });
  message.setAttribute("role", "alert");
  if (error instanceof Outdated) message.append(" ", element("button", { type: "button", textContent: "Load the page again", onclick: () => location.reload() }));
  const field = error.field ?? "";
  const names = [field, field.split(".")[0], /image|source/.test(field) ? "image" : "-"];
  const places = names.map((name) => document.querySelector(`[data-field="${CSS.escape(name)}"]`));
  // Of a list with one value per level, the server names only the list.
  const boxes = [...document.querySelectorAll(`[data-field^="${CSS.escape(field)}."]`)];
  places.push(boxes.find((box) => !box.querySelector("input").validity.valid) ?? boxes[0]);
  const place = places.find((found) => found && !found.hidden);
  if (!place) $("status").after(message);
  else if (place.tagName === "P") place.append(message);
  else place.after(message);
  const folded = place?.closest("details");
  if (folded) folded.open = true;
  message.scrollIntoView({ block: "nearest" }); // the form scrolls by itself where it is higher than the window
  say("");
  if (error.field === undefined) console.error(error);
}
