// The divider follows its range input, which a mouse, a finger or the arrow keys move.
"use strict";

function moveWith(slider) {
  const move = () => slider.parentElement.style.setProperty("--split", slider.value + "%");
  slider.addEventListener("input", move);
  move();
}

function dividedPair({ before, after, beforeName, afterName, caption }) {
  const make = (tag, facts, ...inside) => {
    const node = Object.assign(document.createElement(tag), facts);
    node.append(...inside);
    return node;
  };
  const slider = make("input", { type: "range", min: 0, max: 100, step: 0.1, value: 50 });
  slider.setAttribute("aria-label", `divider between ${beforeName} and ${afterName}: ${caption}`);
  const pair = make("div", { className: "pair" },
    make("img", { className: "before", src: before, alt: `${beforeName}: ${caption}` }),
    make("img", { className: "after", src: after, alt: `${afterName}: ${caption}` }),
    slider,
    make("div", { className: "divider" }),
    make("div", { className: "names" }, make("span", { textContent: beforeName }), make("span", { textContent: afterName })));
  moveWith(slider);
  return pair;
}
