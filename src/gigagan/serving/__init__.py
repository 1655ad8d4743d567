"""The model as a service that speaks the OpenAI Images API.

    client ── HTTP ──► gate ──► app ──► batcher (bounded queue) ──► worker: a process with the model
                                 ▲                                     │
                                 └── encoding in threads ◄── pixels ───┘

Everything but the worker is free of torch. The worker may die at any time: it is started again, and nobody hangs.
"""
