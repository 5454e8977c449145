"""An unmodified openai agent that works in several processes: `fork` or `spawn`, in a pool and in processes of its own."""

import multiprocessing
import sys

import openai


def ask(question):
    messages = [{"role": "user", "content": question}]
    return openai.OpenAI().chat.completions.create(model="m", messages=messages).choices[0].message.content


if __name__ == "__main__":
    method = sys.argv[1]
    context = multiprocessing.get_context(method)
    print(ask("before"))
    single = context.Process(target=ask, args=("alone",))
    single.start()
    single.join()
    with context.Pool(1) as pool:  # which it ends with SIGTERM
        print(*pool.map(ask, [f"pooled {number}" for number in range(4)]), sep="\n")
    print(ask("after"))
